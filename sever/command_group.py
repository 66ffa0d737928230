"""How every command ends: done, with one message for a user's mistake, or anew in several processes."""

import os
import signal
import traceback
from pathlib import Path
from typing import Any

import click

from sever.utils.errors import ElsewhereError, PeerError, SeveralDevices, SeverError, Stopped
from sever.utils.rank import World, world_of

_INTERRUPTED = 130
_TERMINATED = 143


class CommandGroup(click.Group):
    """Turns a `SeverError` into its message on standard error and exit status 2.

    A command for several devices is done anew by a process for each of them.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments, for the processes that do the command in this one's place."""
        ctx.meta["args"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Do the command of the context."""
        world = World()
        try:
            world = world_of(os.environ)
            if world.size > 1:
                return self._invoke_on_rank(ctx, world)
            signal.signal(signal.SIGTERM, _terminate)
            try:
                return super().invoke(ctx)
            except SeveralDevices as several:
                from sever.parallel.launch import launch

                status, message = launch(ctx.meta["args"], several.names, _how_to_resume)
                if message:
                    click.echo(f"sever: {message}", err=True)
                ctx.exit(status)
        except SeverError as error:
            _tell(ctx, str(error))
            ctx.exit(error.status)
        except Stopped as stop:
            ctx.exit(stop.status)
        except KeyboardInterrupt:
            if world.size == 1:
                click.echo("sever: stopped", err=True)
            ctx.exit(_INTERRUPTED)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an error in it would be printed as Python ends

    def _invoke_on_rank(self, ctx: click.Context, world: World) -> Any:
        """Do the command with the other processes; the first one that fails reports it."""
        # torch's C++ warns in each process of what cannot be told beforehand: that all parameters are used.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from sever.parallel import collectives

        status = 0
        with collectives.process_group(world):  # SIGTERM ends it at once
            signal.signal(signal.SIGTERM, _terminate)
            try:
                with collectives.peer_errors():
                    return super().invoke(ctx)
            except click.exceptions.Exit as ending:
                status = ending.exit_code
                collectives.barrier()  # a launcher ends the others as soon as one ends like that
            except Stopped as stop:
                # `launch` knows the signal, and must not end the others for a status of the first.
                status = 0 if collectives.is_started_by_sever() else stop.status
                collectives.barrier()
            except Exception as error:
                if _is_to_tell(error, world) and collectives.is_first_to_fail():
                    raise
                ctx.exit(_status_of(error))
        ctx.exit(status)


def _how_to_resume(path: Path) -> str:
    """What to do after the end of a run, by its folder."""
    from sever.engine.run_folder import RunFolder

    run = RunFolder(path)
    if not run.newest_first:
        return f"{run.path} has no checkpoint yet; start anew"
    return f"To go on: sever train -r {run.newest_first[0]}"


def _status_of(error: Exception) -> int:
    if isinstance(error, SeverError):
        return error.status
    return error.exit_code if isinstance(error, click.ClickException) else 1


def _is_to_tell(error: Exception, world: World) -> bool:
    """Whether an error is this process's own, or the loss of one that nobody else reports."""
    if isinstance(error, PeerError):
        from sever.parallel import collectives

        return world.is_main and not collectives.is_started_by_sever()
    return not isinstance(error, ElsewhereError)


def _tell(ctx: click.Context, message: str) -> None:
    if ctx.meta.get("debug"):
        traceback.print_exc()
    click.echo(f"sever: {message}", err=True)


def _terminate(*_: object) -> None:
    """On SIGTERM leave as on an error, so that nothing half-written stays."""
    if world_of(os.environ).size == 1:
        click.echo("sever: stopped", err=True)
    raise SystemExit(_TERMINATED)
