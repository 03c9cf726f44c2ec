"""Runs the tests of the main module in as many processes as there are CPUs, for their time is the engine's own computing."""
import io
import multiprocessing
import sys
import unittest


def _run(name):
    said = io.StringIO()
    result = unittest.TextTestRunner(said, verbosity=0).run(unittest.defaultTestLoader.loadTestsFromName(name))
    return result.wasSuccessful() and result.testsRun > 0, said.getvalue()


def _names(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _names(test)
        else:
            yield test.id()


def main():
    names = list(_names(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])))
    failed = 0
    with multiprocessing.get_context("fork").Pool() as pool:
        for ok, said in pool.imap_unordered(_run, names):
            if not ok:
                failed += 1
                print(said, file=sys.stderr)
    print("%d tests, %d failed" % (len(names), failed))
    sys.exit(1 if failed or not names else 0)
