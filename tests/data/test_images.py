"""Images lie as the library of each source decodes them: `datasets`, or torchvision."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rescale_cli.data.datasets import open_images
from rescale_cli.data.images import DeepGrayWarning, decode

datasets = pytest.importorskip("datasets", reason="compares with the library `datasets`")


def photo(orientation: int | None, mode: str = "RGB") -> bytes:
    """A picture that differs in every direction, as a camera would store it."""
    pixels = np.zeros((6, 9, 3), np.uint8)
    pixels[0, 0], pixels[0, -1], pixels[-1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG", exif=exif)
    return file.getvalue()


def as_pillow(picture: Any) -> Any:
    return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("mode", [None, "L", "RGB"])
def test_hugging_face_images_are_those_of_datasets(tmp_path: Path, mode: str | None) -> None:
    datasets.disable_progress_bars()
    rows = {"image": [{"bytes": photo(o), "path": None} for o in (None, 1, 3, 6, 8)],
            "label": [0, 1, 0, 1, 0]}  # fmt: skip
    features = datasets.Features(image=datasets.Image(mode=mode), label=datasets.Value("int64"))
    table = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(test=table).save_to_disk(str(tmp_path / "disk"))
    table.to_parquet(str(tmp_path / "test.parquet"))
    for spec in (f"hf:{tmp_path}/disk", f"parquet:{tmp_path}/test.parquet"):
        images = open_images(spec)
        for index, row in enumerate(table):
            found = np.broadcast_to(images.read(index), as_pillow(row["image"]).shape)
            np.testing.assert_array_equal(found, as_pillow(row["image"]))


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for name, orientation in (("a", 3), ("b", 6)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(photo(orientation))
    images = open_images(f"folder:{tmp_path}")
    for index, (picture, _) in enumerate(ImageFolder(str(tmp_path))):
        np.testing.assert_array_equal(images.read(index), np.asarray(picture))


def test_gray_of_16_bits_is_warned_about_and_8_bits_are_not() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(file, "PNG")
    with pytest.warns(DeepGrayWarning):
        assert decode(file.getvalue(), "x.png").min() == 255
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 30, np.uint8)).save(file, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(file.getvalue(), "x.png").max() == 30


def test_an_image_of_as_many_pixels_as_pillow_allows_is_read() -> None:
    import PIL.Image as pillow  # noqa: N813

    width = 1 << 13
    height = pillow.MAX_IMAGE_PIXELS // width
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    assert decode(file.getvalue(), "x.png").shape == (height, width, 3)
