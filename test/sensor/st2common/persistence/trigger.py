"""Stands in for StackStorm's st2common/persistence/trigger.py, as far as the sensor asks it."""
import stackstorm


class TriggerInstance:
    @classmethod
    def query(cls, trigger, order_by, limit):  # models/db/__init__.py, MongoDBAccess.query
        assert order_by == ["-occurrence_time"], order_by
        return stackstorm.StackStorm.current.newest(trigger, limit)
