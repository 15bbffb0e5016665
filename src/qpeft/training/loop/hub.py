"""The finished adapter on the Hugging Face Hub: the repository is made before training, the adapter is pushed after it."""

from __future__ import annotations

from pathlib import Path

from qpeft.errors import RunError
from qpeft.training.recipe.config import RunConfig


def make_repository(config: RunConfig) -> str | None:
    """The repository's name (`owner/name`), made where there is none; None for a recipe without `push_to_hub`.

    Raises RunError where the hub refuses or cannot be reached, so that no training is done in vain.
    """
    section = config.training
    if not section.push_to_hub:
        return None
    from huggingface_hub import HfApi

    name = section.hub_model_id or config.name
    try:
        return str(HfApi().create_repo(name, private=section.hub_private_repo, exist_ok=True).repo_id)
    except Exception as error:  # the hub's client raises errors of several packages
        raise RunError(
            f"the hub's repository cannot be made: {_line(error)}", value=name, hint="hf auth login, or push_to_hub: false"
        ) from error


def push(repository: str, adapter: Path) -> None:
    """Upload the folder of a finished adapter.

    Args:
        repository: id of the repository on the hub.
        adapter: the adapter's folder, which stays where it is.

    Raises:
        RunError: it was not uploaded.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().upload_folder(repo_id=repository, folder_path=adapter, commit_message="Adapter trained with qpeft")
    except Exception as error:  # as above
        raise RunError(
            f"the adapter is trained, and was not pushed to the hub: {_line(error)}",
            value=repository,
            hint=f"hf upload {repository} {adapter}",
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
