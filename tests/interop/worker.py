"""A QTasks worker: worker.py URL NAME. Its tasks write to files of the directory in which it runs."""

import asyncio
import sys

from qtasks.asyncio import QueueTasks
from qtasks.registries import AsyncTask

URL, NAME = sys.argv[1:]

app = QueueTasks(name=NAME, broker_url=URL)


def note(file, line):
    """One short write in append mode is whole, whoever else writes."""
    with open(file, "a") as file:
        file.write(f"{line}\n")


@app.task(name="count", echo=True)
async def count(self: AsyncTask, number):
    note("runs", self.ctx.task_uuid)
    note("runs_of_python", self.ctx.task_uuid)
    return number


@app.task(name="echo")
async def echo(*args, **kwargs):
    return {"args": list(args), "kwargs": kwargs}


@app.task(name="raise", echo=True)
async def raise_(self: AsyncTask, **kwargs):
    self.ctx.plugin_error(**kwargs)


@app.task(name="fails", retry=2)
async def fails(*args, **kwargs):
    raise ValueError("no luck")


@app.task(name="cancel_me", echo=True)
async def cancel_me(self: AsyncTask):
    self.ctx.cancel("no longer wanted")


app.run_forever()
