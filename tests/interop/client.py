"""A QTasks producer that a test tells what to do: client.py (async|sync) URL NAME.

One question a line on standard input, as JSON; one answer a line on standard output, as JSON. Everything goes through the public
API of the package as it was published.
"""

import asyncio
import dataclasses
import datetime
import inspect
import json
import sys
import traceback
import uuid

FLAVOUR, URL, NAME = sys.argv[1:]
# Standard output is for answers alone.
ANSWERS, sys.stdout = sys.stdout, sys.stderr

if FLAVOUR == "async":
    from qtasks.asyncio import QueueTasks
    from qtasks.results import AsyncResult as Result
else:
    from qtasks import QueueTasks
    from qtasks.results import SyncResult as Result

app = QueueTasks(name=NAME, broker_url=URL)


async def done(value):
    """The same call in both flavours."""
    return await value if inspect.isawaitable(value) else value


def described(task):
    """A task as a client has it in hand, with the text of what JSON readers might round."""
    if task is None:
        return None
    plain = {}
    for field in dataclasses.fields(task):
        value = getattr(task, field.name)
        if isinstance(value, datetime.datetime):
            value = value.timestamp()
        elif isinstance(value, uuid.UUID):
            value = str(value)
        plain[field.name] = value
    plain["returning_text"] = json.dumps(task.returning)
    plain["args_text"], plain["kwargs_text"] = json.dumps(task.args), json.dumps(task.kwargs)
    plain["types"] = {name: type(value).__name__ for name, value in plain.items()}
    return plain


async def add(tasks):
    """Adds tasks; gives their uuids."""
    added = []
    for task in tasks:
        more = {"priority": task["priority"]} if "priority" in task else {}
        task = await done(app.add_task(task["task"], *task.get("args", []), **task.get("kwargs", {}), **more))
        added.append(str(task.uuid))
    return added


async def results(uuids, timeout=60):
    """Waits for tasks, as a producer does."""
    # The client has as many connections as there are waits, and no more than a hundred.
    room = asyncio.Semaphore(50)

    async def result(uuid):
        async with room:
            return described(await done(Result(uuid=uuid, app=app).result(timeout=timeout)))

    return await asyncio.gather(*[result(uuid) for uuid in uuids])


async def get(uuids):
    """Tasks as they stand now."""
    return [described(await done(app.get(uuid=uuid))) for uuid in uuids]


async def ping():
    return await done(app.ping())


async def get_all():
    """The uuids of all tasks."""
    return sorted(str(task.uuid) for task in await done(app.broker.storage.get_all()))


async def flush_all():
    await done(app.flush_all())


async def as_python_writes(hashes):
    """Records as Python would write them, given what stands in them."""
    read_and_write = {
        "priority": lambda text: str(int(text)),
        "args": lambda text: json.dumps(json.loads(text)),
        "kwargs": lambda text: json.dumps(json.loads(text)),
        "created_at": lambda text: repr(float(text)),
        "updated_at": lambda text: repr(float(text)),
        "returning": lambda text: json.dumps(json.loads(text), ensure_ascii=False),
        "retry": lambda text: str(int(text)),
        "retry_child_uuid": lambda text: str(uuid.UUID(text, version=4)),
        "retry_parent_uuid": lambda text: str(uuid.UUID(text, version=4)),
    }
    same = lambda text: text
    return [{name: read_and_write.get(name, same)(text) for name, text in fields.items()} for fields in hashes]


QUESTIONS = {function.__name__: function for function in (add, results, get, ping, get_all, flush_all, as_python_writes)}


async def main():
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = {"answer": await QUESTIONS[question.pop("ask")](**question)}
        except Exception:
            answer = {"raised": traceback.format_exc()}
        print(json.dumps(answer), file=ANSWERS, flush=True)


asyncio.run(main())
