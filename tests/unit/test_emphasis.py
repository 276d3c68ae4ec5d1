"""AUTOMATIC1111's syntax: what brackets weigh, what is refused and where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daguerre.emphasis import LoraTag, SyntaxProblem, parse
from daguerre.errors import InvalidRecipe
from daguerre.recipe import LoraWish
from daguerre.recipe import parse as parse_recipe


def weights(prompt: str) -> list[list[tuple[str, float]]]:
    """The sections of a prompt, neighbours of one weight joined."""
    sections = []
    for section in parse(prompt).sections:
        found: list[tuple[str, float]] = []
        for part in section:
            weight = round(part.weight, 4)
            if found and found[-1][1] == weight:
                found[-1] = (found[-1][0] + part.text, weight)
            else:
                found.append((part.text, weight))
        sections.append(found)
    return sections


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox", [[("a fox", 1.0)]]),
        ("", [[]]),
        ("a (red) fox", [[("a ", 1.0), ("red", 1.1), (" fox", 1.0)]]),
        ("a (red:1.3) fox", [[("a ", 1.0), ("red", 1.3), (" fox", 1.0)]]),
        ("a [red] fox", [[("a ", 1.0), ("red", 0.9091), (" fox", 1.0)]]),
        ("((red))", [[("red", 1.21)]]),
        ("(a (red:1.5) fox:0.8)", [[("a ", 0.8), ("red", 1.2), (" fox", 0.8)]]),
        ("([red])", [[("red", 1.0)]]),
        ("(red: 1.3 )", [[("red", 1.3)]]),
        ("(red:-1)", [[("red", -1.0)]]),
        ("(a:b)", [[("a:b", 1.1)]]),
        ("10:30 in the evening", [[("10:30 in the evening", 1.0)]]),
        (r"a fox \(red\)", [[("a fox (red)", 1.0)]]),
        ("\\[x\\] \\\\", [[("[x] \\", 1.0)]]),
        ("a BREAK b", [[("a ", 1.0)], [(" b", 1.0)]]),
        ("(a BREAK b:2)", [[("a ", 2.0)], [(" b", 2.0)]]),
        ("BREAKFAST", [[("BREAKFAST", 1.0)]]),
    ],
)
def test_weights(prompt: str, expected: list[list[tuple[str, float]]]) -> None:
    """Fragments with their weights, in sections."""
    assert weights(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "position", "told"),
    [
        ("a (red fox", 3, "never closed"),
        ("a red) fox", 6, "closes nothing"),
        ("a [red fox", 3, "never closed"),
        ("a red] fox", 6, "closes nothing"),
        ("(a]", 3, "closes nothing"),
        ("[a)", 3, "closes nothing"),
        ("((a)", 1, "never closed"),
        ("a:1.2)", 6, "closes nothing"),
        ("(a:1.2.3)", 4, "no number"),
        ("(a:99)", 4, "between -10 and 10"),
        ("a [cat:dog:0.5]", 7, "step to step"),
        ("a [cat|dog]", 7, "step to step"),
        ("a <lora:x", 3, "a LoRA is written"),
        ("a <lora:>", 3, "a LoRA is written"),
        ("a <lora:x:y>", 3, "a LoRA is written"),
        ("a <lora:x:0.5:0.7>", 3, "a LoRA is written"),
        ("a <lora:x:7>", 3, "between -2 and 2"),
    ],
)
def test_errors_tell_where(prompt: str, position: int, told: str) -> None:
    """The first character is 1."""
    with pytest.raises(SyntaxProblem, match=f"^at character {position}: .*{told}"):
        parse(prompt)
    with pytest.raises(InvalidRecipe) as refused:
        parse_recipe({"prompt": prompt, "prompt_syntax": "a1111"})
    assert [error.field for error in refused.value.errors] == ["prompt"]


def test_loras_in_the_prompt() -> None:
    """They go to their field and leave the prompt; the two ways together are bounded like one."""
    assert parse("a fox <lora:style:0.8>").loras == [LoraTag("style", 0.8)]
    draft = parse_recipe(
        {"prompt": "a (fox:1.2), <lora:style:0.8> <lora:b>", "prompt_syntax": "a1111", "loras": [{"name": "c"}]}
    )
    assert draft.loras == (LoraWish("c"), LoraWish("style", 0.8), LoraWish("b"))
    assert draft.prompt == "a (fox:1.2),"
    assert parse_recipe({"prompt": "a <lora:style:0.8>", "prompt_syntax": "plain"}).loras == ()
    with pytest.raises(InvalidRecipe, match="more than 4"):
        parse_recipe({"prompt": "a" + "".join(f"<lora:{i}>" for i in range(5)), "prompt_syntax": "a1111"})
    with pytest.raises(InvalidRecipe, match="named in the prompt"):
        parse_recipe({"prompt": "a", "negative_prompt": "<lora:a>", "prompt_syntax": "a1111"})


@pytest.mark.parametrize("prompt", ["<lora:a>", " <lora:a:0.5> "])
def test_a_prompt_of_nothing_but_loras(prompt: str) -> None:
    """It is empty then, which is a prompt too."""
    assert parse_recipe({"prompt": prompt, "prompt_syntax": "a1111"}).prompt == ""


@given(st.text(alphabet="ab ,:()[]\\<>lor1.|BREAK", max_size=60))
def test_any_text_is_read_or_refused(prompt: str) -> None:
    """Nothing else is raised; what is read without brackets has all its letters."""
    try:
        parsed = parse(prompt)
    except SyntaxProblem:
        return
    assert not set("()[]") & set(prompt) or parsed is not None
    if not set("()[]\\<") & set(prompt) and "BREAK" not in prompt:
        assert parsed.text == prompt
