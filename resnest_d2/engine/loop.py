"""Detectron2's training loops, which stop before a loss that is not finite spoils the weights."""

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import detectron2.utils.comm as comm
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model
from detectron2.layers import NaiveSyncBatchNorm
from torch import nn
from torch.optim import Optimizer

from ..config import ConfigError
from ..config.settings import Settings
from ..modeling.sync_batchnorm import CpuSyncBatchNorm
from .options import TrainingOptions

logger = logging.getLogger(__name__)

REPORT = "non_finite_losses.jsonl"


class NonFiniteError(ConfigError, FloatingPointError):
    """A loss, or a weight, has become infinite or NaN."""


def others_wait(model: nn.Module) -> bool:
    """Whether other processes may be in a SyncBN of the heads, behind the proposals.

    They do not answer there: a process that fails before has to end, and its end ends them.
    """
    heads = getattr(getattr(model, "module", model), "roi_heads", None)
    return comm.get_world_size() > 1 and any(
        isinstance(m, CpuSyncBatchNorm | nn.SyncBatchNorm | NaiveSyncBatchNorm)
        for m in (heads.modules() if heads is not None else ())
    )


class _FiniteLosses:
    """Part of a loop that looks at the losses of all processes before they go backward.

    Args:
        folder: where a report of each batch without a finite loss is added to a file.
        skip: how many of them are left out before training stops.
        args: of the loop.
    """

    def __init__(self, folder: str, skip: int, *args: Any) -> None:
        super().__init__(*args)
        self._file = Path(folder) / REPORT
        self._skip = skip
        self._skipped = 0
        self._files: list[str] = []
        self.model.register_forward_pre_hook(self._note)
        self.model.register_forward_hook(self._check)

    def run_step(self) -> None:
        """Do an iteration, or leave its batch out if its loss is not finite.

        Raises:
            NonFiniteError: more batches than may be left out were without a finite loss.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            if not isinstance(error, NonFiniteError):  # Detectron2's, of proposals
                proposals = {"proposals": torch.tensor(math.nan)}
                if others_wait(self.model):
                    raise self._report([self._mine(proposals)]) from None
                error = self._report_all(proposals)
            self._skipped += 1
            if self._skipped > self._skip:
                raise error from None
            self.optimizer.zero_grad()
            logger.warning("%s; batch %d of %d left out", error, self._skipped, self._skip)

    def _note(self, model: nn.Module, inputs: tuple) -> None:
        self._files = [image.get("file_name", "?") for image in inputs[0]]

    def _check(self, model: nn.Module, inputs: tuple, output: Any) -> None:
        """Raise in all processes if the losses of one are not finite."""
        if not (model.training and torch.is_grad_enabled()):
            return  # an evaluation, or a pass of precise BN
        losses = output if isinstance(output, dict) else {"total_loss": output}
        if error := self._report_all(losses):
            raise error

    def _report_all(self, losses: dict[str, torch.Tensor]) -> NonFiniteError | None:
        """Note the batch if the losses of a process are not finite; each tells its own."""
        mine = self._mine(losses)
        if all(comm.all_gather(not any(isinstance(v, str) for v in mine["losses"].values()))):
            return None
        processes = comm.all_gather(mine)
        return self._report(processes, write=comm.is_main_process())

    def _mine(self, losses: dict[str, torch.Tensor]) -> dict[str, Any]:
        """This process's part of a report; what is not finite is text, as JSON has no NaN."""
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        shown = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        return {"process": comm.get_rank(), "losses": shown, "files": self._files}

    def _report(self, processes: list[dict[str, Any]], write: bool = True) -> NonFiniteError:
        rates = sorted({group["lr"] for group in self.optimizer.param_groups})
        report = {"iteration": self.iter, "rates": rates, "processes": processes}
        if write:
            with self._file.open("a") as stream:
                stream.write(json.dumps(report) + "\n")
        losses = [f"{k} {v}" for p in processes for k, v in p["losses"].items()]
        wrong = dict.fromkeys(loss for loss in losses if loss.endswith(("nan", "inf")))
        files = [file for process in processes for file in process["files"]]
        message = (
            f"iteration {self.iter} has no finite loss ({', '.join(wrong or losses)}) at "
            f"the rate {rates[-1]:g}, on {', '.join(files)}; {self._file} has all of it"
        )
        if not all(p.isfinite().all() for p in self.model.parameters()):
            message += ". The weights are not finite any more: lower the rate or clip gradients"
        return NonFiniteError(message)


class FiniteTrainer(_FiniteLosses, SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with finite losses."""


class FiniteAMPTrainer(_FiniteLosses, AMPTrainer):
    """Detectron2's ``AMPTrainer`` with finite losses."""


def build_loop(
    settings: Settings,
    options: TrainingOptions,
    model: nn.Module,
    loader: Iterable,
    optimizer: Optimizer,
) -> FiniteTrainer | FiniteAMPTrainer:
    """Make the loop of a config, over all processes of the group, on CPUs as on GPUs."""
    given = dict(settings.get("train.ddp") or {"broadcast_buffers": False})
    if not settings.device.startswith("cuda"):
        given["device_ids"] = None
    make = FiniteAMPTrainer if settings.amp else FiniteTrainer
    model = create_ddp_model(model, **given)
    return make(settings.output_dir, options.skip_bad_batches, model, loader, optimizer)
