"""Photos: upright, RGB, from folders and archives; what is broken raises what callers know; GPS in EXIF."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib.data.photos import GPS_IFD, UNREADABLE, exif_coordinates, of_exif, open_photo


def photo(path: Path, latitude: object = None, longitude: object = None, north: object = "N") -> Path:
    """A small photo; with GPS in its EXIF, east of Greenwich, where a latitude is given."""
    exif = Image.Exif()
    if latitude is not None:
        gps = {1: north, 2: latitude, 3: "E", 4: longitude}
        exif[GPS_IFD] = {tag: value for tag, value in gps.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (90, 120, len(path.name))).save(path, exif=exif)
    return path


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
    """However a camera stored it, red is above; a resolution's unit as text does not matter."""
    # Pillow's transpositions that store what the orientation undoes
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = picture.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else picture
    exif = Image.Exif()
    exif[0x0112], exif[0x0128] = orientation, "inch"
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(open_photo(tmp_path, "photo.png"), picture)


@pytest.mark.parametrize("ending", ["heic", "avif"])
def test_what_phones_write_is_read_upright_and_with_its_place(
    tmp_path: Path, picture: Image.Image, ending: str
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x8825] = 6, {1: "S", 2: (10.0, 30.0, 0.0), 3: "E", 4: (20.0, 0.0, 0.0)}
    stored = picture.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / f"photo.{ending}", exif=exif.tobytes(), quality=100)
    found = np.asarray(open_photo(tmp_path, f"photo.{ending}")).astype(int)
    assert found.shape == np.asarray(picture).shape and np.abs(found - picture).mean() < 20.0
    assert exif_coordinates(tmp_path, f"photo.{ending}") == (-10.5, 20.0)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_eight_bits_are_refused_which_pillow_would_clip(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.full((4, 4), 300, kind)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="more than 8 bits a channel; save it with 8"):
        open_photo(tmp_path, "deep.tif")


def test_every_mode_becomes_rgb_and_the_first_frame_of_an_animation_is_taken(
    tmp_path: Path, picture: Image.Image
) -> None:
    for mode in ("CMYK", "L", "LA", "P", "RGBA", "1"):
        path = "photo.tif" if mode == "CMYK" else "photo.png"
        picture.convert(mode).save(tmp_path / path)
        assert open_photo(tmp_path, path).mode == "RGB"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert open_photo(tmp_path, "moving.webp").getpixel((3, 3)) == (255, 0, 0)


def broken(folder: Path, kind: str) -> str:
    """A photo that cannot be read, of ``kind``; its path."""
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, "JPEG")
    whole = buffer.getvalue()
    contents = {"empty": b"", "text": b"no photo", "truncated": whole[:9_000], "header only": whole[:30]}
    if kind in contents:
        (folder / "a.jpg").write_bytes(contents[kind])
        return "a.jpg"
    packing = zipfile.ZIP_DEFLATED if kind.endswith("deflated") else zipfile.ZIP_STORED
    with zipfile.ZipFile(folder / "00.zip", "w", packing) as archive:
        archive.writestr("a.jpg", whole)
    content = bytearray((folder / "00.zip").read_bytes())
    if kind.startswith("byte flipped"):
        content[len(content) // 2] ^= 0xFF
    (folder / "00.zip").write_bytes(content[: len(content) // 2] if kind == "archive cut" else content)
    return {"missing": "nowhere.jpg", "no such member": "00.zip/b.jpg"}.get(kind, "00.zip/a.jpg")


KINDS = [
    "empty", "text", "truncated", "header only", "missing", "no such member", "archive cut", "byte flipped",
    "byte flipped, deflated",
]  # fmt: skip


@pytest.mark.parametrize("smallest_px", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_broken_raises_what_callers_know_decoded_small_or_whole(
    tmp_path: Path, kind: str, smallest_px: int | None
) -> None:
    with pytest.raises(UNREADABLE):
        open_photo(tmp_path, broken(tmp_path, kind), smallest_px)


class TestExif:
    @pytest.mark.parametrize("place", [(48.8, 9.2), (1.3, 103.8), (-33.9, 151.2), (64.1, -21.9)])
    def test_every_quarter_of_the_globe(self, tmp_path: Path, place: tuple[float, float]) -> None:
        gps = {}
        for tag, value, letters in ((2, place[0], "NS"), (4, place[1], "EW")):
            degrees, minutes = abs(value) // 1, abs(value) % 1 * 60
            gps |= {tag - 1: letters[value < 0], tag: (degrees, minutes // 1, minutes % 1 * 60)}
        exif = Image.Exif()
        exif[GPS_IFD] = gps
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
        assert exif_coordinates(tmp_path, "a.jpg") == pytest.approx(place, abs=1e-4)

    @pytest.mark.parametrize("south", ["S", "s", "S ", " S", "S\0", "South", "SOUTH", b"S"])
    def test_a_hemisphere_however_it_is_written(self, tmp_path: Path, south: object) -> None:
        photo(tmp_path / "a.jpg", (33.0, 54.0, 0.0), (18.0, 24.0, 0.0), south)
        assert exif_coordinates(tmp_path, "a.jpg") == pytest.approx((-33.9, 18.4))
        assert of_exif((18.0, 24.0), "West", "longitude") == of_exif(18.4, "w\0", "longitude") == -18.4

    @pytest.mark.parametrize("north", ["", " ", "X", "NS", "E", None, "5"])
    def test_without_a_hemisphere_there_is_no_place(self, tmp_path: Path, north: object) -> None:
        photo(tmp_path / "a.jpg", (48.0, 51.0, 24.0), (2.0, 21.0, 7.0), north)
        assert np.isnan(exif_coordinates(tmp_path, "a.jpg")).all()

    @pytest.mark.parametrize(
        ("parts", "reference", "expected"),
        [
            ((33.0, 54.0, 0.0), "S", -33.9), ((-33.0, 54.0, 0.0), "S", -33.9), ((33.9,), "S", -33.9),
            (33.9, "N", 33.9), ((33.0, 54.0), "N", 33.9), ((-33.0, 54.0, 0.0), "N", np.nan),
            ((33.0, 75.0, 0.0), "N", np.nan), ((33.0, -5.0, 0.0), "N", np.nan), ((np.nan, 0.0), "N", np.nan),
            ((90.0, 0.0, 1.0), "N", np.nan),
        ],
    )  # fmt: skip
    def test_a_sign_counts_once(self, parts: object, reference: str, expected: float) -> None:
        assert of_exif(parts, reference, "latitude") == pytest.approx(expected, nan_ok=True)

    def test_zero_zero_is_a_place_that_was_removed(self, tmp_path: Path) -> None:
        photo(tmp_path / "a.jpg", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
        photo(tmp_path / "b.jpg", (0.0, 0.0, 0.0), (9.0, 0.0, 0.0))
        assert np.isnan(exif_coordinates(tmp_path, "a.jpg")).all()
        assert exif_coordinates(tmp_path, "b.jpg") == (0.0, 9.0)
