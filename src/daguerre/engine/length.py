"""Owns how long a prompt may be: what its tokens take of memory and time grows with them, in every denoiser's call."""

from daguerre.errors import FieldError, InvalidRecipe

#: Tokens of a text encoder: 200 chunks of CLIP. Ten thousand Latin characters are never more, words of them a quarter.
MOST_TOKENS = 200 * 75


def check(tokens: int, field: str) -> None:
    """Lets a prompt of so many tokens pass.

    Raises:
        InvalidRecipe: there are more than `MOST_TOKENS`.
    """
    if tokens > MOST_TOKENS:
        message = f"comes to {tokens} tokens of the text encoder, with what fills up its chunks; at most {MOST_TOKENS}"
        raise InvalidRecipe([FieldError(field, message)])
