"""``GOD`` on generated files: opened and refused."""

import functools

from datamodules.god import GOD
from tests.datamodules import opening

opened = functools.partial(opening.opened, GOD)
refused = functools.partial(opening.refused, opened)
