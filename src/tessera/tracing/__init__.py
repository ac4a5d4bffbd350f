"""From Python to Graph IR, in processing order: ``tensor`` (values), ``recorder`` (every op goes through ``bind``), ``eager``
(one op at a time), ``creation``, ``methods`` and ``indexing`` (what a tensor can do), ``annotations`` (tensor types),
``program`` and ``function`` (traced functions), ``parameters``, ``donation``, ``control`` (cond, while, scan)."""
