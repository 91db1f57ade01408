"""The tools that come with agentvision, one file each. Yours may live anywhere: see `agentvision.plugins`."""

from .crop import crop
from .resize_image import resize_image
from .zoom import zoom

__all__ = ["crop", "resize_image", "zoom"]
