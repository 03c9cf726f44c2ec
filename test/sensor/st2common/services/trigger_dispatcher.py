"""Stands in for StackStorm's st2common/services/trigger_dispatcher.py, in front of the tests' stackstorm.StackStorm."""
from jsonschema import SchemaError, ValidationError

import stackstorm


class TriggerDispatcherService:
    """As a real one: what its connection to the broker went through stays with it."""

    def __init__(self, logger):
        self._logger = logger
        self._broken = False

    def dispatch(self, trigger, payload=None, trace_tag=None, throw_on_validation_error=False):
        world = stackstorm.StackStorm.current
        try:
            world.validate(trigger, payload)
        except (ValidationError, SchemaError, ValueError, stackstorm.Away) as error:
            # trigger_dispatcher.py:92-117, also for a database that is away (measured)
            message = 'Trigger payload validation failed and validation is enabled, not dispatching a trigger "%s" (%s): %s' % (
                trigger, payload, error)
            if throw_on_validation_error:
                raise ValueError(message)
            self._logger.warning(message)
            return
        if world.broker and not self._broken:
            world.publish(trigger, payload)
            return
        world.tried += 1
        if not self._broken:
            # transport/connection_retry_wrapper.py:129-186: some tries, then it raises.
            self._broken = True
            raise stackstorm.Away("[Errno 111] Connection refused")
        # Measured on 3.9.0: for as long as the process lives, also with the broker back.
        raise AttributeError("'NoneType' object has no attribute 'channel'")
