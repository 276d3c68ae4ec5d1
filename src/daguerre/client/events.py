"""Owns the reading of server-sent events: lines to events, and where to go on after a break."""

import msgspec

from daguerre.answers import Cancelled, Completed, Event, Failed
from daguerre.client.errors import BadAnswer

_EVENT = msgspec.json.Decoder(Event)


class EventReader:
    """Reads the events of one job, over as many connections as it takes."""

    def __init__(self) -> None:
        self._last = ""
        self._name = ""

    @property
    def headers(self) -> dict[str, str]:
        """What a connection is opened with: what was heard last is not told again."""
        return {"accept": "text/event-stream", **({"last-event-id": self._last} if self._last else {})}

    def read(self, line: str) -> Event | None:
        """The event that ends with this line, if one does: ours have one line of data each.

        Raises:
            BadAnswer
        """
        name, _, value = line.partition(": ")
        if name == "id":
            self._name = value
        if name != "data":
            return None
        try:
            event: Event = _EVENT.decode(value)
        except msgspec.DecodeError as error:
            raise BadAnswer(f"the event cannot be read: {error}") from None
        self._last = self._name
        return event


def is_last(event: Event) -> bool:
    """Whether nothing comes after it."""
    return isinstance(event, Completed | Failed | Cancelled)
