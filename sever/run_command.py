"""Runs each command: in several processes for several devices, with one message for a user's mistake."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from sever.utils.errors import ElsewhereError, PeerError, SeveralDevices, SeverError, Stopped, StorageError
from sever.utils.launcher_env import World, world_of
from sever.utils.printing import print_error, printable

_INTERRUPTED = 130


class CommandGroup(click.Group):
    """Turns a `SeverError` into its message on standard error and its exit status.

    A command for several devices is started anew in a process for each of them.
    """

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run the program; an error of the system that nothing else expects is a message too."""
        try:
            return super().main(args, *more, **options)
        except OSError as error:
            if "--debug" in (sys.argv if args is None else args):
                print_error(traceback.format_exc().rstrip())
            place = printable(f"{error.filename}: ") if error.filename else ""
            print_error(
                f"sever: {place}{error.strerror or error}. The program did not expect this error of the "
                f"system; --debug shows where it came from"
            )
            sys.exit(StorageError.status)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments for the processes that `launch` starts."""
        ctx.meta["args"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        world = World()
        try:
            world = world_of(os.environ)
            if world.size > 1:
                return self._invoke_on_rank(ctx, world)
            _listen(_terminate)
            try:
                return super().invoke(ctx)
            except SeveralDevices as several:
                from sever.parallel.launch import launch

                status, message = launch(ctx.meta["args"], several.names, _how_to_resume)
                if message:
                    print_error(f"sever: {message}")
                ctx.exit(status)
        except SeverError as error:
            if ctx.meta.get("debug"):
                print_error(traceback.format_exc().rstrip())
            print_error(f"sever: {error}")
            ctx.exit(error.status)
        except click.UsageError as error:
            raise click.UsageError(printable(error.format_message(), keep="\n\t"), error.ctx) from error
        except Stopped as stop:
            ctx.exit(stop.status)
        except KeyboardInterrupt:
            if world.size == 1:
                print_error("sever: stopped")
            ctx.exit(_INTERRUPTED)
        finally:
            # Ours would print an error while Python ends; a rank may get the launcher's signal as it ends.
            _listen(signal.SIG_DFL if world.size == 1 else signal.SIG_IGN)

    def _invoke_on_rank(self, ctx: click.Context, world: World) -> Any:
        """Run the command together with the other processes; the first one that fails reports its error."""
        # torch's C++ warns in each process that no parameter is unused, which is not known beforehand.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from sever.parallel import collectives
        from sever.parallel.rendezvous import process_group

        status = 0
        with process_group(world):  # SIGTERM ends it at once
            _listen(_terminate)
            try:
                with collectives.peer_errors():
                    return super().invoke(ctx)
            except click.exceptions.Exit as ending:
                status = ending.exit_code
                collectives.barrier()  # a launcher ends the others as soon as one ends with a status
            except Stopped as stop:
                # `launch` knows the signal, and would end the others at a status of the first.
                status = 0 if collectives.is_started_by_sever() else stop.status
                collectives.barrier()
            except Exception as error:
                # The main process reports a lost connection, unless `launch` says which process was lost.
                if isinstance(error, PeerError):
                    is_own = world.is_main and not collectives.is_started_by_sever()
                else:
                    is_own = not isinstance(error, ElsewhereError)
                if is_own and collectives.is_first_to_fail():
                    raise
                if isinstance(error, SeverError):
                    ctx.exit(error.status)
                ctx.exit(error.exit_code if isinstance(error, click.ClickException) else 1)
        ctx.exit(status)


def _how_to_resume(path: Path) -> str:
    """How to resume the run of a folder that ended early."""
    from sever.engine.run_folder import RunFolder

    run = RunFolder(path)
    if run.to_resume is None:
        return f"{run.path} has no checkpoint yet; start anew"
    return f"To go on: sever train -r {run.to_resume}"


def _listen(handler: Any) -> None:
    """Handle SIGTERM and SIGHUP, unless the program was started to ignore them, as by nohup."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _terminate(number: int, _: object) -> None:
    """Leave as on an error, so that nothing half-written stays."""
    if world_of(os.environ).size == 1:
        with suppress(OSError):  # of a terminal that is closed
            os.write(2, b"sever: stopped\n")  # a print could be in the middle of another
    raise SystemExit(128 + number)
