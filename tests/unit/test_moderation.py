"""Moderation: rules are met in every disguise, innocent words are not, and no rule can take long."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daguerre.errors import ModerationFailed, PromptRefused
from daguerre.moderation import MOST_PATHS, Category, Moderation, Rules
from daguerre.spellings import folded

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "moderation.md"
RULES = Rules(
    {
        "gore": Category(("gore", "Blood Bath", "säge"), ("behead(ed|ing|s)?", "severed .{0,20}(head|hand)s?")),
        "slurs": Category(("zilkop",)),
    }
)
DISGUISES = [
    "gore",
    "GORE",
    "Gore!",
    "so much gore, please",
    "gore-tex",
    "_gore_",
    "(gore:1.3)",
    "(gore)1.3",
    "(g(o)re:1.2)",
    "(g-o-r-e)1.1",
    "(g0r3:0.9)",
    "((g.0.r.3):1.21)",
    "gore++",
    "<gore>",
    "g o r e",
    "G  O\tR\nE",
    "g.o.r.e",
    "g-o-r-e",
    "g_o_r_e",
    "g*o*r*e",
    "g/o/r/e",
    "go.re",
    "g(o)re",
    "[g|o|r|e]",
    "g'o'r'e",
    "see g o r e now",
    "a g o r e",
    "g0re",
    "g0r3",
    "90r3",
    "60R3!",
    "g 0 r 3",
    "g.0.r.3",
    "g-0re",
    "\uff47\uff4f\uff52\uff45",  # full width
    "\U0001d524\U0001d52c\U0001d52f\U0001d522",  # Fraktur
    "\u24d6\u24de\u24e1\u24d4",  # circled
    "\U0001f156\U0001f15e\U0001f161\U0001f154",  # circled in black
    "\U0001f136\U0001f13e\U0001f141\U0001f134",  # squared
    "\U0001f1ec\U0001f1f4\U0001f1f7\U0001f1ea",  # as flags
    "\u0262\u1d0f\u0280\u1d07",  # small capitals
    "g\u043er\u0435",  # Cyrillic
    "g\u03bfr\u03b5",  # Greek
    "\u0261\u0585re",  # a Latin g of phonetics, an Armenian o
    "g\u00f6r\u00e9",
    "go\u0308re\u0301",
    "g\u0336o\u0336r\u0336e\u0336",  # struck out
    "g\u200bo\u200cr\u200de",
    "g\u00ado\u2060r\ufeffe",
    "g\u202eore\u202c",
    "\u1d4d\u1d52\u02b3\u1d49",  # superscripts
    "blood bath",
    "BLOOD   BATH",
    "blood, bath",
    "bl00d b4th",
    "b.l.o.o.d b.a.t.h",
    "b\u200blood-bath",
    "s\u00e4ge",
    "sa\u0308ge",
    "saege".replace("ae", "a"),
    "beheaded",
    "B3H34D1NG",
    "be.headed",
    "b e h e a d e d",
    "severed head",
    "the severed and still dripping hand",
    "s3v3r3d h34d5",
]
INNOCENT = [
    "",
    " ",
    "a red circle on a blue background",
    "category, allegory and a gorge in Gorey",
    "the bloodbaths of a vampire",  # another word
    "blood in a bath",
    "blood red, bath blue",
    "a 90 degree turn, 60 re-entries",
    "4k, 8k, 1girl, 3d render, f/1.8, 50mm, 16:9, (masterpiece:1.2)",
    "a n d y",
    "\u0433\u043e\u0440\u0430 \u0432 \u0442\u0443\u043c\u0430\u043d\u0435",
    "\u5c71\u306e\u5bfa\u3001\u671d\u9727",
    "\U0001f98a in a \U0001f332 forest",
    "headbehead",
    "severed from everything that he had ever known as a hand",  # too far
    "\ud800",
    "\0",
    "\ufdfa" * 50,
]


@pytest.mark.parametrize("text", DISGUISES, ids=ascii)
def test_a_rule_is_met_in_disguise(text: str) -> None:
    """Alone, and in the middle of a prompt."""
    assert RULES.match(text) == "gore"
    assert RULES.match(f"a castle at night, {text} , oil on canvas, 4k") == "gore"


@pytest.mark.parametrize("text", INNOCENT, ids=ascii)
def test_innocent_prompts_pass(text: str) -> None:
    """Parts of words are no words, and numbers are numbers."""
    assert RULES.match(text) is None


@pytest.mark.parametrize("text", ["zilkop", "zi1kop", "z1lkop", "z!lk0p", "2ilkop", "z|lkop", "z i 1 k o p"])
def test_a_one_is_an_i_and_an_l(text: str) -> None:
    """Either is tried; and the category is the rule's own."""
    assert RULES.match(text) == "slurs"


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=200))
@example("")
@example("|")
@example("! | +")
def test_any_text_can_be_judged_and_folding_is_done_once(text: str) -> None:
    """Nothing raises, and what is folded is folded."""
    RULES.match(text)
    assert folded(folded(text)) == folded(text)


@settings(deadline=None, max_examples=100)
@given(st.text("etaoinshrdlu", min_size=3, max_size=9), st.randoms(use_true_random=False))
def test_any_word_is_found_with_anything_between_its_letters(word: str, chance: random.Random) -> None:
    """Punctuation, invisible characters, accents, case, other letters' shapes."""
    rules = Rules({"mine": Category((word,))})
    between = [".", "-", "_", "*", "\u200b", "\u00ad", "\u0301", "'", "\u2022", ""]
    spelled = "".join(chance.choice((letter, letter.upper())) + chance.choice(between) for letter in word)
    assert rules.match(f"see {spelled} here") == "mine"


@pytest.mark.parametrize(
    "pattern",
    [
        "a*",
        "a+",
        "(a+)+b",
        "(a|a)*b",
        "(a|aa){2,30}b",
        "(?:x{0,9}){9}",
        "a{1,}",
        "a{,}",
        "a{0,51}",
        "a{99999}",
        "[a-z]{0,50}q[a-z]{0,50}",
        "(a?)(a?)(a?)(a?)(a?)(a?)(a?)(a?)(a?)(a?)",
        "(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)(a|b)",
        r"(a)\1",
        "(?=a)",
        "(?!a)",
        "(?<=a)b",
        "(?P<n>a)",
        "(?i)a",
        "(?#x)",
        "(?>a)",
        r"\bx",
        r"\Ax",
        "^a",
        "a$",
        "a{0,5}+",
        "(",
        ")",
        "a)(b",
        "[",
        "a\\",
        "?",
        "a{2",
    ],
)
def test_a_pattern_that_could_run_away_is_refused(pattern: str) -> None:
    """And one that is none; the message names its category."""
    with pytest.raises(ValueError, match=r"^mine: "):
        Rules({"mine": Category((), (pattern,))})


@pytest.mark.parametrize(
    "pattern", ["[*+?]", r"a\.b", r"\w{1,20}ing", "(a|b(c|d)?)?e", "colou?r", "x{3}", "(?:red|green) .{0,20}", r"\d{4}"]
)
def test_other_patterns_may_be_used(pattern: str) -> None:
    """Sets, escapes, alternatives, optional groups, bounded repetitions."""
    Rules({"mine": Category((), (pattern,))})


@pytest.mark.timeout(100)  # one that runs away would take years
def test_the_worst_patterns_end() -> None:
    """As many choices as are allowed, on texts made for them."""
    patterns = (
        "a{0,30}" * 2 + "b",
        "(a?)" * 9 + "b",
        ".{0,30}" * 2 + "b",
        "(a|aa|aaa)" * 6 + "b",
        r"\w{0,9}\w{0,9}\w{0,9}b",
    )
    rules = Rules({"mine": Category((), patterns)})
    for text in ("a" * 10_000, "a " * 5_000, "aaaa " * 2_000, "a." * 5_000):
        assert rules.match(text) is None


def test_paths_are_bounded_where_it_is_said() -> None:
    """1,000 are allowed, more are not."""
    assert MOST_PATHS == 1000
    Rules({"mine": Category((), ("a{0,9}b{0,9}c{0,9}",))})
    with pytest.raises(ValueError, match="1000 ways"):
        Rules({"mine": Category((), ("a{0,9}b{0,9}c{0,9}d?",))})


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


BROKEN = [
    "no toml [",
    "x = 1",
    "[gore]\nword = ['gore']",
    "[gore]\nwords = 'gore'",
    "[gore]\nwords = [7]",
    "[gore]\nwords = ['...']",
    "[gore]\npatterns = ['(a+)+']",
    "[gore]\npatterns = ['(']",
]


@pytest.mark.parametrize("text", [*BROKEN, None], ids=ascii)
def test_a_broken_file_refuses_or_lets_pass_as_the_setting_says(
    tmp_path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Closed and open; the log tells it once, the client only that."""
    path = tmp_path / "rules.toml"
    if text is not None:
        path.write_text(text)
    closed, opened = Moderation(path, "closed"), Moderation(path, "open")
    for _ in range(3):
        with pytest.raises(ModerationFailed) as caught:
            closed.judge("a lake")
        assert str(tmp_path) not in caught.value.message
        assert opened.judge("gore") == "unchecked"
    assert len(caplog.records) == 2
    # Made good, it is used at once.
    path.write_text("[gore]\nwords = ['gore']\n")
    for moderation in (closed, opened):
        assert moderation.judge("a lake") == "passed"
        with pytest.raises(PromptRefused, match="gore") as refused:
            moderation.judge("much gore")
        assert refused.value.category == "gore"
    # And broken anew, it is not what it was.
    path.unlink()
    with pytest.raises(ModerationFailed):
        closed.judge("a lake")
    assert opened.judge("gore") == "unchecked"


def test_the_rules_of_the_guide_are_rules(tmp_path: Path) -> None:
    """As they stand there, and what it says of words."""
    (text,) = re.findall(r"```toml\n# rules.toml(.*?)```", GUIDE.read_text(), re.DOTALL)
    moderation = Moderation(_file(tmp_path / "rules.toml", f"#{text}"), "closed")
    for prompt in ("g0r3", "g.o.r.e", "g(o)re", "g o r e", "acme studios", "severed heads", "beheading"):
        with pytest.raises(PromptRefused):
            moderation.judge(prompt)
    for prompt in ("go re", "acme", "a classic"):
        assert moderation.judge(prompt) == "passed"
