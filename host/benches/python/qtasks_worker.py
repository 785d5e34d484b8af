"""The QTasks worker that the bench compares with: qtasks_worker.py URL NAME."""

import sys

from qtasks.asyncio import QueueTasks
from qtasks.plugins.base import BasePlugin
from qtasks.registries import AsyncTask

URL, NAME = sys.argv[1:]


class Fallback(BasePlugin):
    """Answers every plugin error."""

    async def start(self, *args, **kwargs):
        pass

    async def stop(self, *args, **kwargs):
        pass

    async def trigger(self, name, *args, **kwargs):
        return {"result": 123}


app = QueueTasks(name=NAME, broker_url=URL)
app.add_plugin(Fallback(name="fallback"), trigger_names=["task_executor_run_task_trigger_error"], component="worker")


@app.task(name="resize_image", echo=True)
async def resize_image(self: AsyncTask, path):
    self.ctx.plugin_error(message="the image is larger than the limit", bytes=20971520)


app.run_forever()
