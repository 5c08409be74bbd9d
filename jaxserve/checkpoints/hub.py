"""Where a model's files are: a directory on this machine, or a snapshot from the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxserve.checkpoints.hf_config import config_from_directory
from jaxserve.core.errors import CheckpointError, ConfigError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TEXT = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.jinja", "config.json",
    "generation_config.json",
)  # fmt: skip
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")

Part = Literal["config", "tokenizer", "model"]
"""What is wanted: `config.json`; the files around `tokenizer.json`, of a repository that need be no model; or all that
serving needs."""
_FILES: dict[Part, tuple[str, ...]] = {"config": ("config.json",), "tokenizer": _TEXT, "model": _TEXT + _WEIGHTS}


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    part: Part = "model",
) -> Path:
    """The directory of `source`, downloaded where it is a hub id; CheckpointError if there is neither, ConfigError for
    a `revision` of a directory. `part`: what of a hub id is downloaded.

    `endpoint` is the hub's address; by default what huggingface_hub uses, which the variable HF_ENDPOINT sets.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            accepted = f"none for {path}, a directory on this machine: revisions belong to hub ids"
            raise ConfigError(f"revision = {revision!r} cannot work: give {accepted}")
        return path
    if path.exists():
        held = "tokenizer.json" if part == "tokenizer" else "config.json and the weights"
        raise CheckpointError(path, "a file", f"expected the directory that holds {held}")
    name = str(source)
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise CheckpointError(source, "there is no such directory", "give a directory, or a hub id such as org/name")
    return _download(name, revision, part, cache_dir=cache_dir, token=token, endpoint=endpoint)


def _download(repo_id: str, revision: str | None, part: Part, **options: Any) -> Path:
    """A snapshot. A model's `config.json` comes first: one that cannot be served costs no download."""
    if part == "tokenizer":
        return _snapshot(repo_id, revision, _TEXT, **options)
    first = _snapshot(repo_id, revision, _FILES["config"], **options)
    if not (first / "config.json").is_file():
        raise CheckpointError(repo_id, "the repository has no config.json", "expected a model made for transformers")
    config_from_directory(first)
    return first if part == "config" else _snapshot(repo_id, revision, _FILES[part], **options)


def _snapshot(repo_id: str, revision: str | None, patterns: Sequence[str], **options: Any) -> Path:
    from huggingface_hub import errors, snapshot_download  # seconds to import

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns), **options))
    except errors.GatedRepoError as error:
        found, expected = "access is gated", "accept its terms on the hub, then pass token or set HF_TOKEN"
        raise CheckpointError(repo_id, found, expected) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(repo_id, f"it has no revision {revision!r}", "give a branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        expected = "give a directory, or a hub id; for a private repository pass token or set HF_TOKEN"
        raise CheckpointError(repo_id, "neither a directory here nor a repository on the hub", expected) from error
    except Exception as error:  # the HTTP client that it uses, and so the errors, differ from version to version
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        expected = "check the connection, or give a local directory"
        raise CheckpointError(repo_id, f"the hub could not be read ({reason})", expected) from error
