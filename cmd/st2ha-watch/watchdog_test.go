package main

func watchdogMain() {}
