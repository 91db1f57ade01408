"""Pictures: loaded safely, stored once, resampled once.

`open_image` admits a short list of formats, looks at the header before it decodes a pixel, and gives back upright RGB.
`ImageStore` names pictures by their content, so that the rollouts of a group share pixels, hashes and renderings.
`render` is the one resampling in the system: it goes from a box of the *original* straight to the size at which the
model sees it, however many crops of crops lie between. URLs are `data:` only; nothing here opens a connection.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
import re
import threading
import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

from PIL import Image, ImageOps

from agentvision._once import Once
from agentvision.errors import ImageError
from agentvision.geometry import Box, Size
from agentvision.types import ImageHash, ImageSource, Resized

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is decoded."""
MAX_PIXELS = 64_000_000
"""Width · height that is decoded at most: 192 MB as RGB."""
MAX_BYTES = 128 * 1024 * 1024
"""Encoded size that is read at most."""

_PNG_HINT = "save it as PNG or JPEG"
_ORIENTATION = 0x0112
"""EXIF's tag."""
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def image_hash(image: Image.Image) -> ImageHash:
    """sha256 over mode, size and pixels: pictures of equal bytes and other shape differ."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as upright RGB, fully decoded.

    `source` is a PIL image, a path, encoded bytes, a `data:` URL, or one of these `Resized`. Transparency is laid on
    white; 16-bit grey keeps its high byte. Raises `ImageError` for what cannot be read, is not allowed, is animated, or
    is over `max_pixels`.
    """
    if isinstance(source, Resized):
        image = open_image(source.source, max_pixels=max_pixels)
        return render(image, Box(0, 0, *image.size), full_size(source, image.size))
    if isinstance(source, Image.Image):
        return _upright_rgb(_checked(source, "a PIL image", max_pixels), "a PIL image")
    data, name = _read(source)
    with _opened(data, name, max_pixels) as image:
        return _upright_rgb(image, name)


def _opened(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """A picture whose header is read and checked, of which nothing is decoded yet."""
    return _checked(_header(data, name), name, max_pixels)


def _header(data: bytes, name: str) -> Image.Image:
    """A picture of which only the header is read.

    This is `Image.open` without its own limit of pixels, which is global, prints a warning, and is not ours.
    """
    Image.preinit()
    for kind in FORMATS:
        if kind not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN[kind]
        with suppress(Exception):
            if accept is None or accept(data[:16]) is True:
                return factory(io.BytesIO(data), "")
    raise ImageError(f"{name} is not a readable picture of {', '.join(FORMATS)}; {_PNG_HINT}")


def full_size(source: Resized, size: Size) -> Size:
    """The size at which a picture of `size` counts as the original."""
    if source.size is not None:
        return source.size
    width, height = size
    area = max(source.min_pixels, width * height)
    factor = math.sqrt(min(area, source.max_pixels or area) / (width * height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def decode_data_url(url: str) -> bytes:
    """The bytes inside `data:image/…;base64,…` (or percent-encoded). Raises `ImageError`."""
    head, comma, body = url.partition(",")
    if not head.startswith("data:") or not comma:
        raise ImageError(f"{url[:40]!r} is not a data: URL; it begins 'data:image/png;base64,'")
    if len(body) > MAX_BYTES * 4 // 3:
        raise ImageError(f"a data: URL of {len(body):,} characters is over the limit of {MAX_BYTES:,} bytes")
    try:
        return base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError):
        raise ImageError(f"the data: URL {head[:40]!r} does not hold valid base64") from None


def render(image: Image.Image, box: Box, size: Size) -> Image.Image:
    """The box of the image (in its pixels, clamped to it) at `size` (width, height): the one resampling there is."""
    x0, x1 = (min(max(x, 0.0), float(image.width)) for x in (box.x0, box.x1))
    y0, y1 = (min(max(y, 0.0), float(image.height)) for y in (box.y0, box.y1))
    if not (x0 < x1 and y0 < y1):
        raise ImageError(f"{box!r} has no area inside a picture of {image.width} × {image.height} pixels")
    if size == image.size and (x0, y0, x1, y1) == (0, 0, *image.size):
        return image
    return image.resize(size, resample=Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))


class ImageStore:
    """Pictures in memory by their hash, and by what they were loaded and rendered from.

    Safe for threads. Whatever is asked for again (a path, a rendering) is answered without work, and two who ask at
    once share one piece of work. Stored pictures must not be changed in place. Nothing is forgotten: a store is for one batch
    of episodes (a step of training, a question), and all that they share goes with it.
    """

    def __init__(self, *, max_pixels: int = MAX_PIXELS) -> None:
        self.once = Once()
        """What the episodes of this store have made together: openings, results of pure tools."""
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._images: dict[ImageHash, Image.Image] = {}
        self._keys: dict[int, ImageHash] = {}  # id of a stored picture: it cannot be reused while the picture is held
        self._made: dict[Hashable, ImageHash | Future[ImageHash]] = {}  # how a picture was made: done, or at work
        self._refs: dict[Hashable, weakref.ref[Image.Image]] = {}  # PIL sources, whose id may be reused

    def add(self, image: Image.Image) -> ImageHash:
        """Store a picture as RGB (without a copy where it is RGB already)."""
        key = self._keys.get(id(image))
        if key is not None and self._images.get(key) is image:
            return key
        image = open_image(image, max_pixels=self._max_pixels)
        key = image_hash(image)
        with self._lock:
            kept = self._images.setdefault(key, image)
            self._keys[id(kept)] = key
        return key

    def load(self, source: ImageSource) -> ImageHash:
        """Load and store a picture; see `open_image`. The same source is decoded once. Raises `ImageError`."""
        how = self._source_key(source)
        return self._once(how, lambda: open_image(source, max_pixels=self._max_pixels))

    def render(self, key: ImageHash, box: Box, size: Size) -> ImageHash:
        """Store a box of a stored picture at `size`; see `render`. The same rendering is made once."""
        return self._once((key, box, size), lambda: render(self.get(key), box, size))

    def get(self, key: ImageHash) -> Image.Image:
        """The picture of this hash. Raises `KeyError` when it was never stored."""
        try:
            return self._images[key]
        except KeyError:
            raise KeyError(f"no picture {key[:12]!r} in the store of {len(self._images)}") from None

    def size(self, key: ImageHash) -> Size:
        """(width, height) of the picture of this hash."""
        return self.get(key).size

    def __contains__(self, key: object) -> bool:
        return key in self._images

    def __len__(self) -> int:
        return len(self._images)

    def _source_key(self, source: ImageSource) -> Hashable:
        if isinstance(source, Resized):
            inside = source.source
            key = image_hash(inside) if isinstance(inside, Image.Image) else self._source_key(inside)
            return "resized", key, source.size, source.min_pixels, source.max_pixels
        if isinstance(source, Image.Image):
            how = ("pil", id(source))
            with self._lock:
                known = self._refs.get(how)
                if known is None or known() is not source:
                    self._made.pop(how, None)
                    self._refs[how] = weakref.ref(source)
            return how
        if isinstance(source, bytes):
            return "bytes", hashlib.sha256(source).hexdigest()
        if isinstance(source, str) and source.startswith("data:"):
            return "data", hashlib.sha256(source.encode()).hexdigest()
        try:
            status = Path(source).stat()
        except (OSError, TypeError, ValueError):
            return "unreadable", repr(source)[:200]
        return "path", str(source), status.st_mtime_ns, status.st_size

    def _once(self, how: Hashable, make: Callable[[], Image.Image]) -> ImageHash:
        made = self._made.get(how)
        if isinstance(made, str):
            return made
        mine: Future[ImageHash] = Future()
        with self._lock:
            made = self._made.setdefault(how, mine)
        if made is not mine:
            return made if isinstance(made, str) else made.result()
        try:
            key = self.add(make())
        except BaseException as error:
            with self._lock:
                self._made.pop(how, None)
            mine.set_exception(error)
            raise
        self._made[how] = key
        mine.set_result(key)
        return key


def encoded_bytes(source: Path | str | bytes) -> bytes:
    """The bytes of an encoded picture, not looked into. Raises `ImageError` when they cannot be read."""
    return _read(source)[0]


def header_size(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Size:
    """(width, height) that a picture will have upright, as its header says; nothing is decoded. Raises `ImageError`."""
    if isinstance(source, Resized):
        return full_size(source, header_size(source.source, max_pixels=max_pixels))
    if isinstance(source, Image.Image):
        return source.size
    with _opened(*_read(source), max_pixels) as image:
        width, height = image.size
        with suppress(Exception):
            if image.getexif().get(_ORIENTATION, 1) >= 5:  # lying on its side
                return height, width
        return width, height


def _read(source: object) -> tuple[bytes, str]:
    """The encoded bytes and what to call them in an error."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) > MAX_BYTES:
            raise ImageError(f"{len(source):,} bytes are over the limit of {MAX_BYTES:,} for one picture")
        return bytes(source), f"a picture of {len(source):,} bytes"
    if isinstance(source, str):
        if source.startswith("data:"):
            data = decode_data_url(source)
            return data, f"a data: URL of {len(data):,} bytes"
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", source):
            raise ImageError(
                f"{source[:80]!r}: of all URLs only data: is opened; download the picture and name its file"
            )
    if not isinstance(source, (str, Path)):
        raise ImageError(f"a picture is a PIL image, a path, bytes or a data: URL, not {type(source).__name__}")
    path = Path(source)
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise ImageError(f"the picture {str(source)!r} {what}")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{str(source)!r} is over the limit of {MAX_BYTES:,} bytes for one picture")
        return path.read_bytes(), repr(str(source))
    except (OSError, ValueError) as error:
        raise ImageError(f"the picture {str(source)[:200]!r} cannot be read: {type(error).__name__}") from None


def _checked(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Refuse by the header alone, before anything is decoded."""
    if image.width < 1 or image.height < 1:
        raise ImageError(f"{name} is empty: {image.width} × {image.height} pixels")
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{name} is {image.width} × {image.height} pixels, over the {max_pixels:,} allowed; make it smaller"
        )
    try:
        # An MPO is the JPEG that many cameras write; its further frames are previews and depth maps.
        animated = getattr(image, "format", None) != "MPO" and getattr(image, "is_animated", False)
    except Exception:
        raise ImageError(f"{name} is damaged: its frames cannot be counted; {_PNG_HINT}") from None
    if animated:
        raise ImageError(f"{name} is animated; pass the frame that is meant as a picture of its own")
    return image


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"{name} is damaged or cut short ({type(error).__name__}); {_PNG_HINT} again") from None
    with suppress(Exception):  # damaged camera data beside good pixels: as if there were none
        image = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
    if image.mode == "RGB":
        return image if type(image) is Image.Image else image.copy()
    if image.mode in _SIXTEEN_BIT:
        import numpy as np  # only here: it would double the start of the command line

        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has mode {image.mode!r}, whose range is not known; scale it to 8 bits first")
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")
    except ValueError:
        raise ImageError(f"{name} has mode {image.mode!r}, which has no RGB form; {_PNG_HINT}") from None
