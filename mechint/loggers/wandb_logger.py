"""A run in Weights & Biases, online or kept on disk."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mechint.errors import UserError
from mechint.loggers.logger import Logger, RunInfo
from mechint.loggers.values import flatten, plain
from mechint.runtime.files import require_room

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

PROJECT = "mechint"

Mode = Literal["auto", "online", "offline"]


class WandbLogger(Logger):
    """Sends the configuration, curves, table, figures and masks of a run to W&B; it never asks for anything.

    `mode` "auto" is online where a login exists (and WANDB_MODE does not say otherwise), else offline. An
    online run that cannot begin, because the network or the login does not work, becomes an offline one.
    What is given here wins over W&B's environment variables, and they over what the run itself proposes: None leaves
    `project` to WANDB_PROJECT or "mechint", `group` to WANDB_RUN_GROUP or the run's sweep, `entity` to WANDB_ENTITY or
    the login, no `tags` to WANDB_TAGS. WANDB_NAME, WANDB_JOB_TYPE and WANDB_DIR win over the run's name, its kind and
    its output directory. `init_timeout` and `finish_timeout` are seconds to wait for the server at the start and for
    the upload at the end.
    """

    name = "wandb"

    def __init__(
        self,
        project: str | None = None,
        group: str | None = None,
        mode: Mode = "auto",
        entity: str | None = None,
        tags: Sequence[str] = (),
        init_timeout: float = 30.0,
        finish_timeout: float = 120.0,
    ) -> None:
        if mode not in get_args(Mode):
            raise UserError(f"mode={mode!r} of the wandb logger is not one of {', '.join(get_args(Mode))}")
        self.project = project
        self.group = group
        self.mode = mode
        self.entity = entity
        self.tags = list(tags)
        self.init_timeout = init_timeout
        self.finish_timeout = finish_timeout
        self._run: Run | None = None
        self._why_offline = ""
        self._last_step = 0

    def start(self, run: RunInfo) -> None:
        import wandb

        self._directory = Path(os.environ.get("WANDB_DIR") or run.output_dir)
        require_room(self._directory / "wandb")
        # W&B's own debug messages would otherwise print a traceback each once the disk is full.
        logging.getLogger("wandb").setLevel(logging.ERROR)
        wandb.setup(wandb.Settings(silent=True))
        mode = self._resolve_mode()
        try:
            self._run = self._init(run, mode)
        except wandb.Error as error:
            if mode == "offline" or self.mode != "auto":
                raise
            self._why_offline = "W&B could not be reached"
            log.warning(
                "%s, so the run is kept offline (WANDB_MODE=offline avoids the wait): %s",
                self._why_offline,
                str(error).split("\n")[0],
            )
            self._run = self._init(run, "offline")
        if not self._run.offline and self._run.url:
            log.info("W&B run: %s", self._run.url)

    def _resolve_mode(self) -> str:
        """The mode for wandb.init; sets `_why_offline` where the login decided.

        Raises UserError when the user insists on online and there is no login.
        """
        import wandb

        # For "auto" these settings know WANDB_MODE and `wandb offline`; their default is online.
        mode = str(wandb.setup().settings.mode) if self.mode == "auto" else self.mode
        if mode not in ("online", "run", "shared") or _has_login():
            return mode
        if self.mode == "online":
            raise UserError("no W&B login, or WANDB_MODE forbids it: run `wandb login`, or use mode=offline")
        self._why_offline = "no login"
        return "offline"

    def _init(self, run: RunInfo, mode: str) -> Run:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=self.init_timeout,
            finish_timeout=self.finish_timeout,
            finish_timeout_raises=True,
        )
        return wandb.init(
            project=self.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=self.entity,
            group=self.group or os.environ.get("WANDB_RUN_GROUP") or run.group,
            job_type=os.environ.get("WANDB_JOB_TYPE") or run.job_type,
            name=os.environ.get("WANDB_NAME") or run.name,
            tags=self.tags or None,
            config=run.config,
            dir=self._directory,
            mode=mode,  # type: ignore[arg-type]
            # A run of its own whatever else is open: an earlier job of a sweep, or the user's own run.
            reinit="create_new",
            settings=settings,
        )

    @property
    def run(self) -> Run:
        assert self._run is not None, "a call before start()"
        return self._run

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self.run.log(flatten(metrics), step=step)
        self._last_step = step

    def summary(self, metrics: Mapping[str, Any]) -> None:
        self.run.summary.update(flatten(metrics))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        data: list[Any] = [[plain(value) for value in row] for row in rows]
        with _staged_in(self._directory / "wandb"):
            table = wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)
            self.run.log({name: table}, step=self._last_step)

    def figures(self, paths: Sequence[Path]) -> None:
        import wandb

        images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in paths}
        self.run.log(images, step=self._last_step)

    def masks(self, paths: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(f"masks-{self.run.id}", type="mask")
        for path in paths:
            # The file stays where it is, so no copy of it is needed.
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact)

    def finish(self, succeeded: bool) -> str | None:
        """Close the run, with a failed exit code unless it succeeded; how to see or to upload it.

        Raises OSError when the disk is full, so that the run file may lack its end, TimeoutError when the upload takes
        too long.
        """
        if self._run is None:
            return None
        run, self._run = self._run, None
        exit_code = 0 if succeeded else 1
        if run.disabled:
            run.finish(exit_code)
            return "W&B is disabled by WANDB_MODE, so nothing was sent there."
        offline, url, file = run.offline, run.settings.run_url, Path(run.settings.sync_file)
        sync = f"wandb sync {shlex.quote(str(file.parent))}"
        try:
            run.finish(exit_code)
        except TimeoutError:
            raise TimeoutError(
                f"not uploaded within {self.finish_timeout:g} s; upload it later with: {sync}"
            ) from None
        if not offline:
            return f"W&B run: {url}"
        try:  # W&B writes from a process of its own, which says nothing of a full disk
            require_room(file.parent)
        except OSError as error:
            raise OSError(f"the disk is full, so {file.name} may be incomplete") from error
        why = f" ({self._why_offline})" if self._why_offline else ""
        return f"The W&B run was kept offline{why}; upload it with: {sync}"


def _has_login() -> bool:
    import wandb

    if wandb.run is not None:  # then login() does not answer
        return not wandb.run.offline
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        log.warning("the W&B login cannot be used: %s", str(error).split("\n")[0])
        return False


@contextmanager
def _staged_in(directory: Path) -> Iterator[None]:
    """Let W&B keep the copy of a table that a later upload needs beside the run, not in the home."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = before or str(directory.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
