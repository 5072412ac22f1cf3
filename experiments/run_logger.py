"""RunLogger: curves as CSV that are whole at any moment."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from callbacks.whole_file import whole_file
from contracts import DataError


class RunLogger(CSVLogger):
    """Lightning's ``CSVLogger`` whose ``metrics.csv`` never has half a line.

    Lightning appends to the file, and writes it anew in place when a value of another name is logged: a process
    killed meanwhile, or a full disk, leaves a line that ends in the middle of a number, or loses what was there.

    Raises:
        DataError: The disk is full; the file of before is untouched.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer; other processes than the first have none."""
        if not isinstance(self._experiment, _WholeWriter):
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _WholeWriter(log_dir=self.log_dir)
        return self._experiment

    def finalize(self, status: str) -> None:
        """Write what is left; where the run has failed already, a full disk is only told."""
        try:
            super().finalize(status)
        except DataError as error:
            if status != "failed":
                raise
            print(f"neuroalign: {error}", file=sys.stderr)


class _WholeWriter(ExperimentWriter):
    def save(self) -> None:
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        with whole_file(path, "free some space, and go on with --run.resume=auto (RESUME=auto)") as partial:
            partial.unlink(missing_ok=True)
            if path.exists():
                shutil.copyfile(path, partial)
            self.metrics_file_path, keys = str(partial), list(self.metrics_keys)
            try:
                super().save()
            except BaseException:
                # names that no file has yet
                self.metrics_keys = keys
                raise
            finally:
                self.metrics_file_path = str(path)
