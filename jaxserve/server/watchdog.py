"""Says once, with the stack of the engine's thread, that a step hangs or that the engine has stopped."""

from jaxserve.server.log import logger
from jaxserve.server.state import ServerState


class Watchdog:
    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._told = False

    def look(self) -> None:
        """Call it every second or so; it costs two reads of a clock."""
        trouble = self._state.trouble()
        if trouble is not None and not self._told and self._state.service is not None:
            logger.error(trouble, extra={"fields": {"stack": self._state.service.client.stack()}})
        elif trouble is None and self._told:
            logger.warning("the engine goes on")
        self._told = trouble is not None
