"""Weights and word vectors, and what the authors of the official codes release.

The checksums of torchvision's weights are the ends of their names, the beginnings of their SHA-256; that of CaffeNet
stands on Caffe's model page.
"""

from __future__ import annotations

from scripts.prepare.records import GB, MB, Checksum, Dataset, Manual, Need, Remote, Unpack, sha256

RELDN_PAGE = "https://github.com/NVIDIA/ContrastiveLosses4VRD"
SPLITS = ("train", "val")
MOTIFS_PAGE = "https://github.com/rowanz/neural-motifs"


def _torchvision(name: str) -> Remote:
    prefix = name.removesuffix(".pth").rpartition("-")[2]
    return Remote(name, (f"https://download.pytorch.org/models/{name}",), None, sha256(prefix), f"weights/{name}")


TORCHVISION_WEIGHTS = Dataset(
    "torchvision_weights",
    "ImageNet weights of torchvision",
    tuple(
        _torchvision(name)
        for name in (
            *("alexnet-owt-7be5be79.pth", "vgg16-397923af.pth", "resnet18-f37072fd.pth", "resnet50-0676ba61.pth"),
            *("resnet101-63fe2227.pth", "resnext101_64x4d-173b62eb.pth"),
        )
    ),
)

CAFFENET = Dataset(
    "caffenet",
    "CaffeNet weights and the ImageNet mean, BVLC",
    (
        Remote(
            "bvlc_reference_caffenet.caffemodel",
            ("http://dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel",),
            checksum=Checksum("sha1", "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46"),
            to="weights/bvlc_reference_caffenet.caffemodel",
        ),
        Remote("caffe_ilsvrc12.tar.gz", ("http://dl.caffe.berkeleyvision.org/caffe_ilsvrc12.tar.gz",)),
    ),
    (Unpack("caffe_ilsvrc12.tar.gz", "weights/caffe_ilsvrc12", "imagenet_mean.binaryproto", 200 * MB),),
    (Need("weights/caffe_ilsvrc12/imagenet_mean.binaryproto"),),
)

GLOVE = Dataset(
    "glove",
    "GloVe 6B word vectors",
    (Remote("glove.6B.zip", ("https://nlp.stanford.edu/data/glove.6B.zip",), 862182613),),
    (Unpack("glove.6B.zip", "glove", "glove.6B.200d.txt", 4 * GB),),
    (Need("glove/glove.6B.100d.txt"), Need("glove/glove.6B.200d.txt")),
)

RELDN_RELEASE = Dataset(
    "reldn_release",
    "RelDN's released annotations, detectors and models",
    manual=(
        Manual(
            RELDN_PAGE,
            (
                *(f"reldn/vg/{kind}_{split}.json" for kind in ("rel_annotations", "detections") for split in SPLITS),
                *(f"reldn/vg/{name}.json" for name in ("objects", "predicates")),
            ),
            "section Annotations: unzip the archive of Visual Genome (Google Drive) in reldn/",
        ),
        Manual(
            RELDN_PAGE,
            (
                *(f"openimages-vrd/rel/rel_only_annotations_{split}.json" for split in SPLITS),
                *(f"openimages-vrd/rel/detections_{split}.json" for split in SPLITS),
                "openimages-vrd/rel/rel_9_predicates.json",
            ),
            "section Annotations: unzip the archive of OpenImages (Google Drive) and move its rel/ to openimages-vrd/",
        ),
        Manual(
            RELDN_PAGE,
            (
                "reldn/detection_models/oi_rel/X-101-64x4d-FPN/model_step599999.pth",
                "reldn/detection_models/vg/VGG16/model_step479999.pth",
                "reldn/detection_models/vg/X-101-64x4d-FPN/model_step119999.pth",
                "reldn/detection_models/vrd/VGG16/model_step4499.pth",
            ),
            "section Pre-trained Object Detection Models: unzip the archive (Google Drive) in reldn/",
        ),
        Manual(
            RELDN_PAGE,
            (
                "reldn/trained_models/oi_mini_X-101-64x4d-FPN/model_step6749.pth",
                "reldn/trained_models/oi_X-101-64x4d-FPN/model_step80929.pth",
                "reldn/trained_models/vg_VGG16/model_step62722.pth",
                "reldn/trained_models/vg_X-101-64x4d-FPN/model_step62722.pth",
                "reldn/trained_models/vrd_VGG16_IN_pretrained/model_step7559.pth",
                "reldn/trained_models/vrd_VGG16_COCO_pretrained/model_step7559.pth",
            ),
            "section Our Trained Relationship Detection Models: unzip the archive (Google Drive) in reldn/",
        ),
    ),
)

MOTIFS_RELEASE = Dataset(
    "motifs_release",
    "neural-motifs' released detector and models",
    manual=(
        Manual(MOTIFS_PAGE, ("motifs/vg-faster-rcnn.tar",), "setup, step 3: the detector (Google Drive)"),
        Manual(
            MOTIFS_PAGE,
            ("motifs/motifnet-sgcls.tar", "motifs/motifnet-sgdet.tar"),
            "setup, steps 4 and 5: Motifnet-SGCls/PredCls and Motifnet-SGDet (Google Drive), saved under these names",
        ),
    ),
)
