"""Owns spellings: what a text reads as when disguises are folded.

Folded are compatibility characters, case, accents, invisible characters, letters of other scripts that look alike,
digits and signs that stand for letters, and punctuation or spaces between letters.
"""

import re
import unicodedata
from collections.abc import Iterator


def _alike() -> dict[int, str]:
    """Letters by those of ASCII that they look like, as far as Unicode's own compatibility forms do not say it."""
    rows = {
        "abcdefghijklmnopqrstuvwyz": "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘꞯʀꜱᴛᴜᴠᴡʏᴢ",  # small capitals
        "abekmhoptcyxijsdqwruh": "авекмнортсухіјѕԁԛԝгиһ",  # Cyrillic
        "abyenikvoptuxw": "αβγεηικνορτυχω",  # Greek
        "ouhnjqg": "օսհոյզց",  # Armenian
        "iagdlhtobif": "ıɑɡđłħŧøƀɨƒ",  # Latin, further out
    }
    found = {
        ord(letter): plain for plains, letters in rows.items() for plain, letter in zip(plains, letters, strict=True)
    }
    for start in (0x1F130, 0x1F150, 0x1F170, 0x1F1E6):  # squared, circled in black, squared in black, flags
        found |= {start + number: chr(ord("a") + number) for number in range(26)}
    return found


_ALIKE = _alike()
# Which of the two a 1 stands for cannot be told: both are tried.
_LEET = dict(zip("023456789@$+", "ozeasgtbgast", strict=True))
_LEETS = tuple(str.maketrans(_LEET | dict.fromkeys("1!|", letter)) for letter in "il")
_IS_LEET = re.compile(r"[0-9@$+!|]")
# Ligatures of whole sentences: a prompt of them would unfold to eighteen times its length.
_LONG = {0xFDFA: " ", 0xFDFB: " "}
_WORD = re.compile(r"[^\W_]+")
_RUN = re.compile(r"(?<!\S)\S(?: \S){2,}(?!\S)")
_BETWEEN = re.compile(r"[\W_]+")
#: How strongly a prompt means a part of itself: (words:1.2), (words)1.2.
_WEIGHT = re.compile(r"(?<=[:)])[+-]?\d*\.?\d+")
_ENDS = ".,;:!?|+()[]{}<>\"'*-_"


def folded(text: str) -> str:
    """The text in plain lower-case letters, as far as it looks like that; white space and punctuation stay."""
    if not text.isascii():
        text = text.translate(_LONG)
        text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
        text = "".join(char for char in text if unicodedata.category(char) not in ("Mn", "Me", "Cf"))
        # Once more: what decomposes may be of another script, and what is folded may have a compatibility form.
        text = unicodedata.normalize("NFKC", text.translate(_ALIKE))
    return text.casefold()


def readings_of(text: str) -> Iterator[list[str]]:
    """The words of a folded text, in each way to read it."""
    yield words_of(text)
    texts = [_WEIGHT.sub("", text)]
    if _IS_LEET.search(texts[0]):
        chunks = [bare for chunk in texts[0].split() if (bare := chunk.strip(_ENDS))]
        texts += dict.fromkeys(_unleeted(chunks, leet) for leet in _LEETS)
    for read in texts:
        words = words_of(read)
        if read is not texts[0]:
            yield words
        joined = [chunk if chunk.isalnum() else _BETWEEN.sub("", chunk) for chunk in read.split()]
        if joined != words:
            yield joined


def _unleeted(chunks: list[str], leet: dict[int, str]) -> str:
    """The chunks with digits and signs as letters; what is a number stays one."""
    if not chunks:
        return ""
    read = " ".join(chunks).translate(leet).split(" ")  # all at once, which is faster
    return " ".join(chunk if chunk.isdigit() else word for chunk, word in zip(chunks, read, strict=True))


def runs_of(line: str) -> list[str]:
    """Letters that stand alone, three or more in a row, put together; digits among them in each way to read them."""
    found = [run.replace(" ", "") for run in _RUN.findall(line)]
    return found + [run.translate(leet) for run in found for leet in _LEETS if _IS_LEET.search(run)]


def words_of(text: str) -> list[str]:
    """The words of a folded text, as they stand."""
    return _WORD.findall(text)
