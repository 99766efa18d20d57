"""`medar data`: stub while the sources arrive."""

from cyclopts import App

app = App(name="data")
