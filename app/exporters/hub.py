"""An export onto the Hugging Face Hub, with the Hub's own client (the extra `hub`)."""

from pathlib import Path

import orjson

from app.errors import Conflict, Forbidden, InvalidInput, RetortError, Unsupported
from app.exporters.signing import MANIFEST


class HubUnreachable(RetortError):
    kind = "hub-unreachable"


def push_export(folder: Path, repository: str, token: str, private: bool, revision: str | None = None) -> str:
    """Upload a folder that was verified, as a dataset repository. Returns its address.

    Raises `Forbidden` for a public push of data whose declared use is no redistribution, `Unsupported` without the
    extra, `InvalidInput` and `Conflict` for what the Hub refuses, `HubUnreachable` where it does not answer.
    """
    manifest = orjson.loads((folder / MANIFEST).read_bytes())
    if not private and not manifest["intended_use"].get("redistribution"):
        raise Forbidden(
            "this export was not declared for redistribution, so its terms were not judged for that: export it again "
            "with --redistribution, or push it with --private"
        )
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise Unsupported("pushing needs the extra `hub`: pip install 'retort[hub]'") from error
    api = HfApi(token=token, library_name="retort", library_version=str(manifest["code_version"]))
    try:
        url = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="dataset",
            revision=revision,
            commit_message=f"Export {manifest['export']}: {manifest['n_rows']:,} rows",
            ignore_patterns=[".*"],
        )
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
