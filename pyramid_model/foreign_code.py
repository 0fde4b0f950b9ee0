"""Python code in the folder of a model from elsewhere: it is never run, and nobody is asked whether to run it."""

REFUSED = (
    "it needs Python code that its folder contains, and such code is never run. Use a model whose classes are part of "
    "transformers"
)


def never_ask() -> None:
    """Make transformers refuse code of a folder, for libraries that call it without `trust_remote_code=False`."""
    from transformers import dynamic_module_utils

    # With 0 s for an answer, the question "Do you wish to run the custom code?" becomes a ValueError.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def loading_problem(err: Exception) -> str:
    """The reason of an error of transformers, without its advice to allow code of the folder."""
    text = " ".join(str(err).split())
    return REFUSED if "trust_remote_code" in text or "custom code" in text else text
