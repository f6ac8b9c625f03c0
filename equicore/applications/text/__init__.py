"""Language models that treat demographic groups alike: fair text by exchanges of words."""

from typing import TYPE_CHECKING

from equicore.lazy import face_of

if TYPE_CHECKING:
    from equicore.applications.text._face import *  # noqa: F403
    from equicore.applications.text._face import __all__ as __all__

__getattr__, __dir__ = face_of(__name__)
