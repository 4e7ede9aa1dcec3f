"""Before the start: load the project in a child, ask the servers, make the plan, show it.

Where a check goes, by what it looks at:

* project.py: the application, its module, settings and views (PS101 to PS108, PS113)
* urls.py: the URL configuration (PS109)
* databases.py: the values in DATABASES (PS110, PS310)
* migrations.py: those that are not applied, which --check notes
* origins.py: keys that are misspelt (PS110), and option files without effect (PS112), which may be
  behind a failed connect (PS301 to PS309)
* runner.py: loading as such (PS102, PS111, PS207); loaded.py: the same settings after a HUP
* servers.py: DATABASES that fail as such (PS102), what PyMySQL cannot use of OPTIONS (PS112), the
  answers of the database servers, and failed connects (PS3xx)
* plan.py, budget.py: sizes and ages, and whether they fit the servers (PS201 to PS206, PS208)

reports.py is what they find; failures.py has the words for code of the project's that fails.
child.py runs the first four in a process of their own; render.py shows what was found.
"""
