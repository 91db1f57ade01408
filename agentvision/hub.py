"""Where a model's files are: a folder, or a repository of the Hugging Face Hub.

What is missing is told at once and in one line. The Hub is asked once, with a deadline, before the library that loads
models asks it file by file, each with retries; where it cannot be reached, an earlier download serves.
"""

from __future__ import annotations

from pathlib import Path

from agentvision.errors import ModelError

_PATIENCE_S = 10.0
_INSIDE = ("export", "model")
"""Folders of a run and of a checkpoint that hold a model."""


def local_folder(path: str | Path) -> Path | None:
    """The model folder that a path means; None for an id on the Hub, which has at most one slash.

    Raises `ModelError` when there is no such folder, or no model in it.
    """
    text, place = str(path), Path(path).expanduser()
    named = isinstance(path, Path) or text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1
    if not named and not place.is_dir():
        return None
    if not place.is_dir():
        raise ModelError(f"there is no model folder {text!r}")
    if not (place / "config.json").is_file():
        if (place / "adapter_config.json").is_file():
            raise ModelError(
                f"the folder {text!r} holds an adapter alone; the model with it merged is in the export/ "
                "of its run, once that has ended (--resume with trainer.steps=STEP ends it there)"
            )
        inside = [str(place / name) for name in _INSIDE if (place / name / "config.json").is_file()]
        hint = f" Did you mean {inside[0]!r}?" if inside else ""
        raise ModelError(f"the folder {text!r} holds no model: there is no config.json in it.{hint}")
    return place


def reachable(path: str | Path, *, revision: str | None = None) -> str:
    """A folder, or an id on the Hub that can be loaded from now. Raises `ModelError` when it is neither."""
    folder = local_folder(path)
    if folder is not None:
        return str(folder)
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = str(path)
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=_PATIENCE_S)
        return name
    except GatedRepoError:
        raise ModelError(f"the model {name!r} is gated: ask for access on its page, then `hf auth login`") from None
    except RevisionNotFoundError:
        raise ModelError(f"the model {name!r} has no revision {revision!r} on the Hub") from None
    except EntryNotFoundError:
        raise ModelError(f"the repository {name!r} on the Hub holds no model: there is no config.json in it") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            f"there is no folder {name!r}, and no such model on the Hub (a private one needs `hf auth login`)"
        ) from None
    except (httpx.TransportError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        try:
            return snapshot_download(name, revision=revision, local_files_only=True)
        except (LocalEntryNotFoundError, OSError, ValueError):
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            raise ModelError(
                f"there is no folder {name!r}, it was not downloaded before, and the Hub cannot be reached ({why})"
            ) from error
