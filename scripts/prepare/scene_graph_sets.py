"""The data sets of scene graphs: VRD, Visual Genome in its three cuts, OpenImages.

The SHA-256 of VRD's files were observed on the official release; the sizes of Visual Genome's image archives are those
that its server tells.
"""

from __future__ import annotations

from scripts.prepare.records import GB, MB, Dataset, Manual, Need, Remote, Unpack, sha256

LU_ET_AL = "https://raw.githubusercontent.com/Prof-Lu-Cewu/Visual-Relationship-Detection/991e6f6935dc49773fe3c406782a8c72a0c6d367"
XU_ET_AL = ("http://svl.stanford.edu/projects/scene-graph", "http://cvgl.stanford.edu/scene-graph")
VISUAL_GENOME = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
VG_FILES = ("image_data", "objects", "relationships")
OPEN_IMAGES = "https://storage.googleapis.com/openimages"
OPEN_IMAGES_IMAGES = Manual(
    f"{OPEN_IMAGES}/web/download.html",
    ("openimages-vrd/train", "openimages-vrd/validation"),
    "fetch the images that the lists name, with the downloader of that page",
    optional=True,
)


def _lu2016(folder: str, name: str, size: int, digest: str) -> Remote:
    return Remote(name, (f"{LU_ET_AL}/{folder}/{name}",), size, sha256(digest), f"vrd/lu2016/{name}")


def _xu(place: str, name: str) -> Remote:
    folder = "VG" if name == "image_data.json" else "dataset"
    return Remote(name, tuple(f"{host}/{folder}/{name}" for host in XU_ET_AL), to=f"{place}/{name}")


def _open_images(folder: str, name: str) -> Remote:
    return Remote(name, (f"{OPEN_IMAGES}/{folder}/{name}",), to=f"openimages-vrd/{name}")


VRD = Dataset(
    "vrd",
    "Visual Relationship Detection, Lu et al. 2016",
    (
        Remote("json_dataset.zip", ("https://cs.stanford.edu/people/ranjaykrishna/vrd/json_dataset.zip",)),
        Remote(
            "sg_dataset.zip",
            ("http://imagenet.stanford.edu/internal/jcjohns/scene_graphs/sg_dataset.zip",),
            hint="the README of github.com/GriffinLiang/vrd-dsr links a backup on Google Drive",
        ),
        _lu2016("evaluation", "gt.mat", 105837, "368519749afec735e38611b09c3e1934b0f34bb3d2621eda1725b406c53d8edb"),
        _lu2016("data", "imagePath.mat", 15905, "d5de7298a960ee845b2108de1566f88469b50354ba793223c8408c93fc77b045"),
        _lu2016(
            "data", "objectDetRCNN.mat", 137583, "3921a86d7ed55cbdc039f976f6f32c5140fc8e00c0e79dc2852d0c2bd8df6904"
        ),
        _lu2016("data", "objectListN.mat", 880, "3b8bf473ea984591516e4999ffc96ca25877eccfc74264a73634c98a557c63c0"),
        _lu2016("data", "relationListN.mat", 750, "fd016f08c4e2641b7135ffd7c9427b18fd21b0dc2011de937b032f5d69711647"),
        _lu2016(
            *("results", "relationship_det_result.mat", 846730),
            "2eca193fe6622e2878ec7e573575e9a5441ba9f0fab606ecb4559fd3c538c969",
        ),
    ),
    (
        Unpack("json_dataset.zip", "vrd/json_dataset", "annotations_train.json", 50 * MB),
        Unpack("sg_dataset.zip", "vrd/sg_dataset", "sg_train_images", 4 * GB),
    ),
    (
        *(
            Need(f"vrd/json_dataset/{name}.json", checksum=sha256(digest))
            for name, digest in (
                ("annotations_train", "2e7404157ffc2022fb7230baf2ffd453d5a4dc5875cd5adbc688002a7d401d6c"),
                ("annotations_test", "f3dc50010f4d3149ccc79a568c89ad46a617c9cb2c7f773d7ac0aed163eaf9c9"),
                ("objects", "1c57d1730f9991ec8e11ee6dd42e05cb1497ced2126bb93feda91dd4fe627ef3"),
                ("predicates", "b16fc9f3ec075d0deb72cbaf251fdb39b9bc200624b8e51122f1c6e1b886287a"),
            )
        ),
        Need("vrd/sg_dataset/sg_train_images", 4000),
        Need("vrd/sg_dataset/sg_test_images", 1000),
    ),
)

VG = Dataset(
    "vg",
    "Visual Genome images, both parts in one folder",
    tuple(
        Remote(name, (f"https://cs.stanford.edu/people/rak248/VG_100K_2/{name}",), size)
        for name, size in (("images.zip", 9731705982), ("images2.zip", 5471658058))
    ),
    (Unpack("images.zip", "vg/VG_100K", "*.jpg", 12 * GB), Unpack("images2.zip", "vg/VG_100K", "*.jpg", 7 * GB)),
    (Need("vg/VG_100K", 108249),),
)

VG_JSON = Dataset(
    "vg_json",
    "Visual Genome annotations, beside the images",
    tuple(Remote(f"{n}.json.zip", (f"{VISUAL_GENOME}/{n}.json.zip",)) for n in VG_FILES),
    tuple(Unpack(f"{n}.json.zip", "vg", f"{n}.json", 3 * GB) for n in VG_FILES),
    tuple(Need(f"vg/{name}.json") for name in VG_FILES),
    uses=("vg",),
)

VG150 = Dataset(
    "vg150",
    "VG150 scene graphs, Xu et al. 2017",
    tuple(_xu("vg150", name) for name in ("VG-SGG.h5", "VG-SGG-dicts.json", "image_data.json")),
    uses=("vg",),
    links=(("vg150/VG_100K", "vg/VG_100K"),),
)

VG200 = Dataset(
    "vg200",
    "VG200 relations, Zhang et al. 2017 (VTransE)",
    (
        Remote(
            "vg1_2_meta.h5",
            ("https://www.dropbox.com/s/ujd4247m2tduuj2/vg1_2_meta.h5?dl=1",),
            to="vg200/vg1_2_meta.h5",
            hint="the README of github.com/zawlin/cvpr17_vtranse links it",
        ),
        _xu("vg200", "image_data.json"),
    ),
    uses=("vg",),
    links=(("vg200/VG_100K", "vg/VG_100K"),),
)

OPENIMAGES_VRD = Dataset(
    "openimages_vrd",
    "OpenImages visual relationships, challenge of 2019",
    tuple(
        _open_images("challenge_2019", f"challenge-2019-{name}.csv")
        for name in (
            *("train-vrd", "validation-vrd", "classes-vrd", "attributes-description"),
            *("relationships-description", "relationship-triplets"),
        )
    ),
    manual=(OPEN_IMAGES_IMAGES,),
)

OPENIMAGES_VRD_2018 = Dataset(
    "openimages_vrd_2018",
    "OpenImages visual relationships, challenge of 2018",
    (
        _open_images("challenge_2018/train", "challenge-2018-train-vrd.csv"),
        _open_images("2019_01", "challenge-2018-attributes-description.csv"),
        _open_images("2019_01", "challenge-2018-relationships-description.csv"),
    ),
    manual=(
        Manual(
            f"{OPEN_IMAGES}/web/challenge.html",
            (
                "openimages-vrd/challenge-2018-classes-vrd.csv",
                "openimages-vrd/challenge-2018-image-ids-valset-vrd.csv",
            ),
            "section of the visual relationship track",
        ),
        OPEN_IMAGES_IMAGES,
    ),
)
