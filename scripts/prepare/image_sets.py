"""The data sets of images: classification, detection and segmentation.

Checksums of CIFAR, VOC and SBD are torchvision's. Those of COCO's archives and of Tiny ImageNet's are the ones by which
the field's code knows them; that of the minival annotations is MLPerf's.
"""

from __future__ import annotations

from scripts.prepare.records import GB, MB, Dataset, Manual, Need, Remote, Unpack, md5

OXFORD = ("https://thor.robots.ox.ac.uk/pascal/VOC", "http://host.robots.ox.ac.uk/pascal/VOC")


def _voc(year: int, name: str, size: int, digest: str) -> Remote:
    return Remote(name, tuple(f"{host}/voc{year}/{name}" for host in OXFORD), size, md5(digest))


CIFAR10 = Dataset(
    "cifar10",
    "CIFAR-10, python version",
    (
        Remote(
            "cifar-10-python.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            170498071,
            md5("c58f30108f718f92721af3b95e74349a"),
        ),
    ),
    (Unpack("cifar-10-python.tar.gz", "cifar-10-batches-py", "data_batch_1", 400 * MB),),
    tuple(
        Need(f"cifar-10-batches-py/{name}", checksum=md5(digest))
        for name, digest in (
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ("test_batch", "40351d587109b95175f43aff81a1287e"),
            ("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        )
    ),
)

CIFAR100 = Dataset(
    "cifar100",
    "CIFAR-100, python version",
    (
        Remote(
            "cifar-100-python.tar.gz",
            ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            169001437,
            md5("eb9058c3a382ffc7106e4002c42a8d85"),
        ),
    ),
    (Unpack("cifar-100-python.tar.gz", "cifar-100-python", "train", 400 * MB),),
    tuple(
        Need(f"cifar-100-python/{name}", checksum=md5(digest))
        for name, digest in (
            ("train", "16019d7e3df5f24257cddd939b257f8d"),
            ("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
            ("meta", "7973b15100ade9c7d40fb424638fde48"),
        )
    ),
)

TINY_IMAGENET = Dataset(
    "tiny_imagenet",
    "Tiny ImageNet, 200 classes of 64 x 64 pixels",
    (
        Remote(
            "tiny-imagenet-200.zip",
            ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
            248100043,
            md5("90528d7ca1a48142e341f4ef8d21d0de"),
        ),
    ),
    (Unpack("tiny-imagenet-200.zip", "tiny-imagenet-200", "wnids.txt", GB),),
    (
        *(Need(f"tiny-imagenet-200/{name}") for name in ("wnids.txt", "words.txt", "val/val_annotations.txt")),
        Need("tiny-imagenet-200/train", 100_000),
        Need("tiny-imagenet-200/val", 10_000),
    ),
)

MIT67 = Dataset(
    "mit67",
    "MIT Indoor 67, Quattoni & Torralba 2009",
    (
        Remote("indoorCVPR_09.tar", ("http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar",)),
        *(
            Remote(name, (f"http://web.mit.edu/torralba/www/{name}",), to=f"mit67/{name}")
            for name in ("TrainImages.txt", "TestImages.txt")
        ),
    ),
    (Unpack("indoorCVPR_09.tar", "mit67/Images", "airport_inside", 5 * GB),),
    (Need("mit67/Images", 15620),),
)

VOC2007 = Dataset(
    "voc2007",
    "PASCAL VOC 2007, trainval and test",
    (
        _voc(2007, "VOCtrainval_06-Nov-2007.tar", 460032000, "c52e279531787c972589f7e41ab4ae64"),
        _voc(2007, "VOCtest_06-Nov-2007.tar", 451020800, "b6e924de25625d8de591ea690078ad9f"),
    ),
    (
        Unpack("VOCtrainval_06-Nov-2007.tar", "VOCdevkit/VOC2007", "JPEGImages", GB),
        Unpack("VOCtest_06-Nov-2007.tar", "VOCdevkit/VOC2007", "JPEGImages", GB),
    ),
    (
        Need("VOCdevkit/VOC2007/JPEGImages", 9963),
        Need("VOCdevkit/VOC2007/Annotations", 9963, (".xml",)),
        Need("VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"),
        Need("VOCdevkit/VOC2007/ImageSets/Main/test.txt"),
    ),
)

VOC2012 = Dataset(
    "voc2012",
    "PASCAL VOC 2012, segmentation",
    (_voc(2012, "VOCtrainval_11-May-2012.tar", 1999639040, "6cd6e144f989b92b3379bac3b3de84fd"),),
    (Unpack("VOCtrainval_11-May-2012.tar", "VOCdevkit/VOC2012", "JPEGImages", 3 * GB),),
    (
        Need("VOCdevkit/VOC2012/JPEGImages", 17125),
        Need("VOCdevkit/VOC2012/SegmentationClass", 2913),
        Need("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"),
        Need("VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"),
    ),
    (
        Manual(
            "https://www.dropbox.com/s/oeu149j8qtbs1x0/SegmentationClassAug.zip?dl=0",
            ("VOCdevkit/VOC2012/SegmentationClassAug",),
            "unpack the 12,031 masks; they replace SBD",
            optional=True,
        ),
        Manual(
            "http://host.robots.ox.ac.uk:8080/",
            ("VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt",),
            "register, fetch VOC2012test.tar and unpack it beside the training images; only a submission needs it",
            optional=True,
        ),
    ),
)

SBD = Dataset(
    "sbd",
    "Semantic Boundaries Dataset, Hariharan et al. 2011",
    (
        Remote(
            "benchmark.tgz",
            (
                "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            ),
            1419539633,
            md5("82b4d87ceb2ed10f6038a1cba92111cb"),
            hint="http://home.bharathh.info/pubs/codes/SBD/download.html is the project's page",
        ),
    ),
    (Unpack("benchmark.tgz", "benchmark_RELEASE", "dataset", 3 * GB),),
    (
        Need("benchmark_RELEASE/dataset/img", 11355),
        Need("benchmark_RELEASE/dataset/cls", 11355, (".mat",)),
        Need("benchmark_RELEASE/dataset/train.txt"),
        Need("benchmark_RELEASE/dataset/val.txt"),
    ),
    uses=("voc2012",),
)

COCO = Dataset(
    "coco",
    "COCO val2014 with the 35k and minival annotations",
    (
        Remote(
            "annotations_trainval2014.zip",
            ("http://images.cocodataset.org/annotations/annotations_trainval2014.zip",),
            252872794,
            md5("0a379cfc70b0e71301e0f377548639bd"),
        ),
        Remote(
            "coco_annotations_minival.tgz",
            ("https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz",),
            checksum=md5("2d2b9d2283adb5e3b8d25eec88e65064"),
        ),
        Remote(
            "val2014.zip",
            ("http://images.cocodataset.org/zips/val2014.zip",),
            6645013297,
            md5("a3d79f5ed8d289b7a7554ce06a5782b3"),
        ),
    ),
    (
        Unpack("annotations_trainval2014.zip", "coco/annotations", "instances_val2014.json", 2 * GB),
        Unpack("coco_annotations_minival.tgz", "coco/annotations", "instances_minival2014.json", 2 * GB),
        Unpack("val2014.zip", "coco/val2014", "*.jpg", 8 * GB),
    ),
    (
        *(Need(f"coco/annotations/instances_{n}2014.json") for n in ("val", "valminusminival", "minival")),
        Need("coco/val2014", 40504),
    ),
)

COCO_TRAIN = Dataset(
    "coco_train",
    "COCO train2014 images",
    (
        Remote(
            "train2014.zip",
            ("http://images.cocodataset.org/zips/train2014.zip",),
            13510573713,
            md5("0da8c0bd3d6becc4dcb32757491aca88"),
        ),
    ),
    (Unpack("train2014.zip", "coco/train2014", "*.jpg", 16 * GB),),
    (Need("coco/train2014", 82783),),
    uses=("coco",),
)
