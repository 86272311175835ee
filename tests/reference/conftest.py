from tests.reference.closeness import BOUNDS, FOUND


def pytest_terminal_summary(terminalreporter):
    if FOUND:
        terminalreporter.section("largest relative difference from the papers")
    for method, found in FOUND.items():
        terminalreporter.write_line(f"{method:20} {found:.1e}   bound {BOUNDS[method]:.0e}")
