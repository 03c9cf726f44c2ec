"""Stands in for StackStorm's base class of sensors (st2reactor/sensor/base.py), which has no package of its own."""


class Sensor:
    def __init__(self, sensor_service, config=None):
        self.sensor_service = sensor_service
        self.config = config or {}
