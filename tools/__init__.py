"""The tools that come with agentvision, one file each. Yours may live anywhere: see `agentvision.plugins`."""

from agentvision.tools.crop import crop
from agentvision.tools.resize_image import resize_image
from agentvision.tools.zoom import zoom

__all__ = ["crop", "resize_image", "zoom"]
