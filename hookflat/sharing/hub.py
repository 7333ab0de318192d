"""To the Hugging Face Hub and back, through huggingface_hub: the endpoint, token and cache are that library's."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from hookflat.errors import UserError
from hookflat.records.folder import NETWORKS

PREFIX = "hub:"
"""In front of USER/NAME, where a run folder may stand too."""
_Transport: type[Exception] = HfHubHTTPError.__bases__[0]  # ty: ignore[invalid-assignment]
"""HTTPError of the httpx that huggingface_hub stands on; its name changes with versions."""


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Send a folder that `bundle` made to the model repository USER/NAME, made where there is none; returns its URL.

    One commit; files of the folder replace theirs, others stay. Raises UserError for what the hub refuses.
    """
    with _told(f"{repo} cannot be pushed"):
        api = HfApi(library_name="hookflat")
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="hookflat push")
        return str(url)


def downloaded(spec: str) -> Path:
    """The folder in the hub's cache of "hub:USER/NAME", or of "hub:USER/NAME@REVISION": a run folder to read.

    Weights, recipe and results only. Raises UserError where it cannot be had, or is none of hookflat's.
    """
    repo, _, revision = spec.removeprefix(PREFIX).partition("@")
    wanted = ["recipe.toml", "eval.json", *NETWORKS.values(), "checkpoints/epoch-*.safetensors"]
    with _told(f"{spec} cannot be fetched"):
        api = HfApi(library_name="hookflat")
        folder = Path(api.snapshot_download(repo, revision=revision or None, allow_patterns=wanted))
    if not (folder / "recipe.toml").is_file():
        raise UserError(
            f"{spec} was not pushed by hookflat: it has no recipe.toml; for weights of others, download "
            "the file and say --arch and --data"
        )
    return folder


@contextmanager
def _told(what: str) -> Generator[None]:
    """Errors of the hub as errors of the user's, with what to do about those that can be helped."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError(f"{what}: nobody is logged in (hf auth login, or HF_TOKEN=...)") from error
    except (HFValidationError, _Transport, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = " (hf auth login, or HF_TOKEN=...)" if status in (401, 403) else ""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f"{what}: {' '.join(lines[:2])}{hint}") from error
