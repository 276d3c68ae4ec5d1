"""The judge of references tells pictures with their colours and hours from pictures with others'."""

from daguerre.demo.ip_gate import distance, scenes_unseen, weigh_likeness
from daguerre.demo.ip_training import IpPlan, scenes_for, twin_of
from daguerre.demo.landscape import Landscape
from daguerre.demo.scene import draw_scene


def test_pictures_like_their_references_are_right_and_others_are_not() -> None:
    """Other drawings of the same scenes pass, drawings of the wrong scenes do not."""
    scenes = scenes_unseen(12)
    references = [draw_scene(scene) for scene in scenes]
    assert weigh_likeness(scenes, references, references)[0] == 1
    colours, hours = weigh_likeness(scenes, references, [draw_scene(twin_of(scene)) for scene in scenes])
    assert min(colours, hours) >= 0.8
    wrong = [*references[1:], references[0]]
    assert weigh_likeness(scenes, references, wrong)[0] == 0


def test_no_reference_is_one_that_was_learned_from() -> None:
    """The gate's seeds and the lessons' lie far apart; they are landscapes without effects."""
    scenes = scenes_unseen(20)
    plan = IpPlan()
    seeds = {scene.seed for lesson in scenes_for(plan) for scene in (lesson, twin_of(lesson))}
    assert not seeds & {scene.seed for scene in scenes}
    assert all(isinstance(scene.subject, Landscape) and not scene.effect for scene in scenes)


def test_a_distance_is_one_of_colours() -> None:
    """Nothing to itself, whatever the size; the same there and back."""
    one, other = (draw_scene(scene) for scene in scenes_unseen(2))
    assert distance(one, one) == 0
    assert distance(one, other) == distance(other, one) > 0
