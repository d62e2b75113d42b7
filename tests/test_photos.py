"""Photos: upright, RGB, from folders and archives; what is broken raises something that callers know."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.data.photos import UNREADABLE, open_photo


@pytest.fixture
def picture() -> Image.Image:
    """Red above, blue below, 32 x 48."""
    image = Image.new("RGB", (32, 48), (200, 10, 10))
    image.paste((10, 10, 200), (0, 24, 32, 48))
    return image


def test_a_member_of_an_archive_is_the_same_photo_as_the_file(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "7.jpg", quality=90)
    with zipfile.ZipFile(tmp_path / "00.zip", "w") as archive:
        archive.write(tmp_path / "7.jpg", "00/7.jpg")
    inside, outside = open_photo(tmp_path, "00.zip/00/7.jpg"), open_photo(tmp_path, "7.jpg")
    assert inside.mode == "RGB" and inside.size == (32, 48)
    assert np.array_equal(inside, outside)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path, picture: Image.Image, orientation: int) -> None:
    """However a camera stored it, red is above."""
    # Pillow's transpositions that store what the orientation undoes
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = picture.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(open_photo(tmp_path, "photo.png"), picture)


def test_exif_that_a_camera_has_written_wrong_does_not_matter(tmp_path: Path, picture: Image.Image) -> None:
    """The resolution's unit as text: Pillow can read the orientation, but not write such tags anew."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0128] = 6, "inch"
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(open_photo(tmp_path, "photo.png"), picture)


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65_535, 64, dtype=np.uint16).repeat(8).reshape(64, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    shades = np.asarray(open_photo(tmp_path, "deep.png"))[:, 0, 0].astype(int)
    assert shades[0] == 0 and shades[-1] == 255 and (np.diff(shades) >= 3).all()


@pytest.mark.parametrize("mode", ["CMYK", "L", "LA", "P", "RGBA", "1", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, picture: Image.Image, mode: str) -> None:
    path = "photo.tif" if mode in {"CMYK", "F"} else "photo.png"
    picture.convert(mode).save(tmp_path / path)
    assert open_photo(tmp_path, path).mode == "RGB"


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert open_photo(tmp_path, "moving.webp").getpixel((3, 3)) == (255, 0, 0)


def broken(folder: Path, kind: str) -> str:
    """A photo that cannot be read, of ``kind``; its path."""
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, "JPEG")
    whole = buffer.getvalue()
    contents = {
        "empty": b"",
        "text": b"no photo",
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:30],
    }
    if kind in contents:
        (folder / "a.jpg").write_bytes(contents[kind])
        return "a.jpg"
    with zipfile.ZipFile(folder / "00.zip", "w") as archive:
        archive.writestr(
            "a.jpg", whole, zipfile.ZIP_DEFLATED if kind.endswith("deflated") else zipfile.ZIP_STORED
        )
    if kind == "no such member":
        return "00.zip/b.jpg"
    if kind == "archive cut":
        content = (folder / "00.zip").read_bytes()
        (folder / "00.zip").write_bytes(content[: len(content) // 2])
    if kind.startswith("byte flipped"):
        content = bytearray((folder / "00.zip").read_bytes())
        content[len(content) // 2] ^= 0xFF
        (folder / "00.zip").write_bytes(bytes(content))
    return {"missing": "nowhere.jpg"}.get(kind, "00.zip/a.jpg")


KINDS = [
    "empty",
    "text",
    "truncated",
    "header only",
    "missing",
    "no such member",
    "archive cut",
    "byte flipped",
    "byte flipped, deflated",
]


@pytest.mark.parametrize("smallest_px", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_broken_raises_what_callers_know_decoded_small_or_whole(
    tmp_path: Path, kind: str, smallest_px: int | None
) -> None:
    """The quick check before a run, at an eighth of the size, finds what the decoding at full size would
    stumble over."""
    path = broken(tmp_path, kind)
    with pytest.raises(UNREADABLE):
        open_photo(tmp_path, path, smallest_px)
