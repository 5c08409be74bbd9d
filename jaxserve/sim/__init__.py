"""The same Engine, Scheduler and BlockManager on a virtual clock: a cost model stands in for the device."""
