from django.core.management.base import BaseCommand, CommandError
from django.db import connection


class Command(BaseCommand):
    help = "Show how many connections the MySQL server has open, and whose."

    def handle(self, *args: object, **options: object) -> None:
        if connection.vendor != "mysql":
            raise CommandError("this needs MySQL or MariaDB; set DATABASE_URL")
        with connection.cursor() as cursor:
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
            [(_, count)] = cursor.fetchall()
            cursor.execute("SHOW PROCESSLIST")
            rows = cursor.fetchall()
            cursor.execute("SELECT CONNECTION_ID()")
            [(own_id,)] = cursor.fetchall()
        self.stdout.write(f"{int(count) - 1} connections, without the one that asks")
        for number, user, host, database, state, idle, *_ in rows:
            if number != own_id:
                self.stdout.write(f"{number:>6}  {user}@{host}  {database}  {state} {idle} s")
