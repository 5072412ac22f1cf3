"""The type checker that the tests switch on: beartype, with integers accepted for floats as PEP 484 says."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
