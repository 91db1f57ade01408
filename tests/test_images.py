"""Pictures come in safely, are stored once, and are resampled once."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agentvision import images
from agentvision.errors import ImageError
from agentvision.geometry import Box
from agentvision.images import ImageStore, decode_data_url, image_hash, open_image, render
from agentvision.types import Resized


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def ramp(width: int = 40, height: int = 20) -> Image.Image:
    """Every pixel different, so that a flip or shift shows."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5 % 256, y * 9 % 256, (x + y) % 256], axis=-1).astype(np.uint8))


# --- what comes in --------------------------------------------------------------------------------------------------


def test_paths_strings_bytes_urls_and_pictures_give_the_same_pixels(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(data := encoded(ramp()))
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, url, ramp(), Image.open(path)):
        image = open_image(source)
        assert type(image) is Image.Image
        assert image_hash(image) == image_hash(ramp())


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_allowed_formats(form: str):
    image = open_image(encoded(Image.new("RGB", (30, 10), (200, 30, 30)), form))
    assert image.mode == "RGB" and image.size == (30, 10)
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 30)).max() < 12


@pytest.mark.parametrize("form", ["TIFF", "PPM", "ICO", "PDF", "TGA", "JPEG2000"])
def test_other_formats_are_refused_even_when_pillow_reads_them(form: str):
    with pytest.raises(ImageError, match="not a readable picture of PNG"):
        open_image(encoded(Image.new("RGB", (32, 32)), form))


def test_each_exif_orientation_gives_the_upright_picture_once():
    upright = ramp()
    inverse = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    for orientation, turn in inverse.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(upright.transpose(turn) if turn is not None else upright, exif=exif)
        loaded = open_image(data)
        assert image_hash(loaded) == image_hash(upright), orientation
        assert image_hash(open_image(loaded)) == image_hash(upright)
        assert image_hash(open_image(Image.open(io.BytesIO(data)))) == image_hash(upright)


def test_a_damaged_exif_block_does_not_cost_the_picture():
    data = encoded(ramp(), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff broken")
    assert open_image(data).size == (40, 20)


def test_cmyk_keeps_its_colour():
    red = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    for source in (red, encoded(red, "JPEG", quality=95)):
        r, g, b = open_image(source).getpixel((5, 5))
        assert r > 230 and g < 40 and b < 40


def test_sixteen_bit_grey_keeps_its_high_byte():
    values = np.arange(0, 65536, 2048, dtype=np.uint16).reshape(4, 8)
    image = open_image(encoded(Image.fromarray(values)))
    assert np.array_equal(np.asarray(image)[..., 0], values >> 8)


def test_palette_and_alpha_are_laid_on_white():
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert open_image(half).getpixel((0, 0)) == (127, 127, 127)
    assert open_image(Image.new("LA", (4, 4), (0, 0))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert open_image(encoded(palette)).getpixel((0, 0)) == (40, 50, 60)
    assert open_image(encoded(palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)


def test_black_and_white_and_grey():
    assert open_image(encoded(Image.new("1", (3, 3), 1))).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(Image.new("L", (3, 3), 77))).getpixel((0, 0)) == (77, 77, 77)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_of_unknown_range_are_refused(mode: str):
    with pytest.raises(ImageError, match=f"mode '{mode}'"):
        open_image(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused(form: str):
    frames = [Image.new("RGB", (8, 8), (k * 80, 0, 0)) for k in range(3)]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="animated"):
        open_image(data)
    with pytest.raises(ImageError, match="animated"):
        open_image(Image.open(io.BytesIO(data)))


def test_a_cameras_mpo_is_its_first_picture():
    data = encoded(Image.new("RGB", (16, 16), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert open_image(data).size == (16, 16)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_file_cut_short_is_an_image_error(form: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    for share in (0, 1, 10, 30, 60, 90):
        with pytest.raises(ImageError):
            open_image(data[: len(data) * share // 100])


@settings(deadline=None, max_examples=150)
@given(data=st.binary(max_size=200), at=st.integers(0, 3000), form=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]))
def test_damaged_files_never_raise_anything_else(data: bytes, at: int, form: str):
    whole = encoded(ramp(), form)
    at %= len(whole)
    with contextlib.suppress(ImageError):
        assert open_image(whole[:at] + data + whole[at + len(data) :]).mode == "RGB"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(8001, 8000), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_by_their_header(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("a pixel was decoded"))
    with pytest.raises(ImageError, match="pixels"):
        open_image(png_header(*size))
    assert not list(recwarn)  # Pillow's own warning about it is not printed before


def test_the_cap_holds_for_pictures_in_memory_and_can_be_set():
    with pytest.raises(ImageError, match="over the 100 allowed"):
        open_image(Image.new("RGB", (11, 10)), max_pixels=100)
    with pytest.raises(ImageError, match="over the 100 allowed"):
        ImageStore(max_pixels=100).load(encoded(Image.new("RGB", (11, 10))))


def test_the_cap_on_encoded_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(images, "MAX_BYTES", 50)
    path = tmp_path / "a.png"
    path.write_bytes(data := encoded(ramp()))
    for source in (data, path, "data:image/png;base64," + base64.b64encode(data).decode()):
        with pytest.raises(ImageError, match="limit of 50"):
            open_image(source)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/a.png", "https://example.com/a.png", "file:///etc/passwd", "ftp://x/y"]
)
def test_urls_other_than_data_are_never_opened(url: str):
    with pytest.raises(ImageError, match="only data:"):
        open_image(url)


@pytest.mark.parametrize("url", ["data:image/png;base64,!!!", "data:image/png;base64", "data:,", "data:text/html,<p>"])
def test_broken_data_urls(url: str):
    with pytest.raises(ImageError):
        open_image(url)


def test_percent_encoded_data_urls():
    assert decode_data_url("data:image/png,%89PNG") == b"\x89PNG"


def test_what_is_no_picture_says_so(tmp_path: Path):
    with pytest.raises(ImageError, match="does not exist"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is not a file"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="not int"):
        open_image(7)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="empty"):
        open_image(Image.new("RGB", (0, 5)))


def test_devices_and_pipes_are_not_read():
    with pytest.raises(ImageError, match="is not a file"):
        open_image(Path("/dev/zero"))


# --- the store ------------------------------------------------------------------------------------------------------


def test_the_hash_covers_mode_and_shape():
    assert image_hash(Image.new("RGB", (30, 100))) != image_hash(Image.new("RGB", (100, 30)))
    assert image_hash(Image.new("L", (30, 100))) != image_hash(Image.new("RGB", (10, 100)))


def test_a_picture_is_stored_once_and_not_copied():
    store, image = ImageStore(), ramp()
    key = store.add(image)
    assert store.add(ramp()) == store.load(encoded(ramp())) == store.add(image) == key
    assert store.get(key) is image and len(store) == 1 and key in store and store.size(key) == (40, 20)


def test_a_source_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[object] = []
    monkeypatch.setattr(images, "open_image", lambda s, **k: (opened.append(s), open_image(s, **k))[1])
    path = tmp_path / "a.png"
    path.write_bytes(encoded(ramp()))
    picture = Image.open(io.BytesIO(encoded(ramp(), "JPEG")))
    store = ImageStore()
    for source in (path, path.read_bytes(), picture):
        before = len(opened)
        keys = {store.load(source) for _ in range(5)}
        assert len(keys) == 1 and sum(s is source for s in opened[before:]) == 1


def test_a_file_that_changed_is_read_again(tmp_path: Path):
    store, path = ImageStore(), tmp_path / "a.png"
    path.write_bytes(encoded(ramp()))
    first = store.load(path)
    path.write_bytes(encoded(ramp(50, 20)))
    assert store.size(store.load(path)) == (50, 20) and store.size(first) == (40, 20)


def test_a_picture_at_a_reused_address_is_not_mistaken():
    store = ImageStore()
    keys = [
        store.load(Image.new("RGBA", (8, 8), (k, 0, 0, 255))) for k in range(50)
    ]  # each is freed, and its id reused
    assert [store.get(key).getpixel((0, 0))[0] for key in keys] == list(range(50))


@pytest.mark.parametrize(
    ("resized", "size"),
    [
        (Resized(ramp(40, 20), (10, 30)), (10, 30)),
        (Resized(ramp(40, 20)), (40, 20)),
        (Resized(ramp(40, 20), min_pixels=3200, max_pixels=5000), (80, 40)),
        (Resized(ramp(40, 20), max_pixels=200), (20, 10)),
        (Resized(ramp(900, 1), max_pixels=4), (60, 1)),
        (Resized(encoded(ramp(40, 20)), (10, 30)), (10, 30)),
    ],
)
def test_a_resized_picture_counts_as_the_original_at_that_size(resized: Resized, size: tuple[int, int]):
    store = ImageStore()
    key = store.load(resized)
    assert store.size(key) == size and store.load(resized) == key
    assert image_hash(open_image(resized)) == key


def test_resized_pictures_at_a_reused_address_are_not_mistaken():
    store = ImageStore()
    keys = [store.load(Resized(Image.new("RGB", (8, 8), (k, 0, 0)), (4, 4))) for k in range(50)]
    assert [store.get(key).getpixel((0, 0))[0] for key in keys] == list(range(50))


def test_a_rendering_is_made_once_even_by_threads(monkeypatch: pytest.MonkeyPatch):
    store = ImageStore()
    key = store.add(ramp(400, 400))
    made: list[Box] = []
    monkeypatch.setattr(images, "render", lambda image, box, size: (made.append(box), render(image, box, size))[1])
    keys: list[str] = []
    threads = [
        threading.Thread(target=lambda: keys.append(store.render(key, Box(0, 0, 200, 200), (56, 56))))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(set(keys)) == 1 and len(keys) == 16


def test_a_failed_load_is_told_each_time_and_may_be_mended(tmp_path: Path):
    store, path = ImageStore(), tmp_path / "a.png"
    for _ in range(2):
        with pytest.raises(ImageError):
            store.load(path)
    path.write_bytes(encoded(ramp()))
    assert store.size(store.load(path)) == (40, 20)


# --- rendering ------------------------------------------------------------------------------------------------------


def test_rendering_a_whole_picture_at_its_size_is_the_picture():
    image = ramp()
    assert render(image, Box(0, 0, 40, 20), (40, 20)) is image


def test_rendering_shows_the_box():
    image = Image.new("RGB", (100, 100), "black")
    image.paste("white", (40, 60, 60, 80))
    assert np.asarray(render(image, Box(42, 62, 58, 78), (28, 28))).min() == 255
    assert np.asarray(render(image, Box(0, 0, 36, 56), (28, 28))).max() == 0


@pytest.mark.parametrize("box", [Box(5, 5, 5, 9), Box(50, 0, 60, 10), Box(9, 9, 3, 3), Box(float("nan"), 0, 1, 1)])
def test_a_box_without_area_is_an_image_error(box: Box):
    with pytest.raises(ImageError, match="no area"):
        render(ramp(), box, (28, 28))


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.floats(-1e6, 1e6)] * 4))
def test_any_box_is_clamped_or_refused(sides: tuple[float, float, float, float]):
    try:
        assert render(ramp(), Box(*sides), (28, 56)).size == (28, 56)
    except ImageError:
        x0, y0, x1, y1 = sides
        assert min(x1, 40) <= max(x0, 0) or min(y1, 20) <= max(y0, 0)
