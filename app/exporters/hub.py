"""An export onto the Hugging Face Hub, with the Hub's own client (the extra `hub`)."""

from pathlib import Path

import orjson

from app.domain.splits import SPLITS
from app.errors import Conflict, Forbidden, InvalidInput, RetortError, Unsupported
from app.exporters.signing import MANIFEST, SIGNATURE

_NOT_JUDGED = "this export was not declared for redistribution, so its terms were not judged for that"

_DATA = [f"{split}-[0-9][0-9][0-9][0-9][0-9].{suffix}" for split in SPLITS for suffix in ("jsonl", "parquet")]


class HubUnreachable(RetortError):
    kind = "hub-unreachable"


def push_export(folder: Path, repository: str, token: str, private: bool, revision: str | None = None) -> str:
    """Upload the files of a verified export, and no other of its folder, as a dataset repository. Returns its address.

    Data files of an export that was pushed there before go with the same commit: a card takes all that is named so.

    Raises `Forbidden` for data whose declared use is no redistribution and a repository that others can read,
    `Unsupported` without the extra, `InvalidInput` and `Conflict` for what the Hub refuses, `HubUnreachable` where it
    does not answer.
    """
    manifest = orjson.loads((folder / MANIFEST).read_bytes())
    given_on = bool(manifest["intended_use"].get("redistribution"))
    if not private and not given_on:
        raise Forbidden(f"{_NOT_JUDGED}: export it again with --redistribution, or push it with --private")
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise Unsupported(
            "pushing needs the extra `hub`: pip install '.[hub]' in Retort's checkout"
        ) from error
    api = HfApi(token=token, library_name="retort", library_version=str(manifest["code_version"]))
    try:
        url = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        # One that is there already stays as it is, whatever was asked for.
        if not given_on and not api.repo_info(repository, repo_type="dataset").private:
            raise Forbidden(
                f"{repository} is there already, and public; {_NOT_JUDGED}: export it again with --redistribution, or "
                "name a private repository"
            )
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="dataset",
            revision=revision,
            commit_message=f"Export {manifest['export']}: {manifest['n_rows']:,} rows",
            delete_patterns=_DATA,
            allow_patterns=[*(file["name"] for file in manifest["files"]), MANIFEST, SIGNATURE],
        )
    except RetortError:
        raise
    except HFValidationError as error:
        raise InvalidInput(f"the Hub does not take this: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise Forbidden(f"the Hub answered {status}: the token may not write to {repository}") from error
        raise Conflict(f"the Hub answered {status}: {error.server_message or error}") from error
    except (
        Exception
    ) as error:  # its client passes on what its own HTTP client throws, which differs by version
        raise HubUnreachable(f"the Hub cannot be reached: {type(error).__name__}: {error}") from error
    return str(url)
