"""A runtime that remembers what it was asked."""


class Asked:
    """Passes tasks on to another runtime, one at a time, and keeps them."""

    def __init__(self, runtime):
        self.workers = runtime.workers
        self.tasks = []
        self._runtime = runtime

    def run(self, tasks):
        def noted():
            for task in tasks:
                self.tasks.append(task)
                yield task

        yield from self._runtime.run(noted())
