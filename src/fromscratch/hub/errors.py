"""What the Hugging Face Hub says no to, in one sentence that shows no token. For models and data alike."""

from fromscratch.errors import FromScratchError, UsageError

HUB_PREFIX = "hf://"
REFUSED_STATUS_CODES = (401, 403, 404)


class HubError(FromScratchError):
    """The Hub could not be reached, or failed; exit code 1."""


def status_of(error: Exception) -> int | None:
    """The HTTP status that an exception of ``huggingface_hub`` stands for, if it does."""
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def refusal(what: str, error: Exception) -> UsageError | None:
    """What the user must change before it makes sense to ask again; None where the Hub merely failed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    if isinstance(error, LocalTokenNotFoundError):
        return UsageError(f"{what}: needs a token; log in with 'hf auth login', or set HF_TOKEN")
    if constants.HF_HUB_OFFLINE:
        return not_in_cache(what)
    status = status_of(error)
    if status in REFUSED_STATUS_CODES:
        return UsageError(
            f"{what}: the Hub answered {status}: no such repository, revision or file, or no access to it; check the "
            "name, and the token in HF_TOKEN (or 'hf auth login')"
        )
    return None


def not_in_cache(what: str) -> UsageError:
    """Offline, and never downloaded."""
    from huggingface_hub import constants

    return UsageError(
        f"{what}: not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids asking the Hub; "
        "unset it, or fill the cache first"
    )
