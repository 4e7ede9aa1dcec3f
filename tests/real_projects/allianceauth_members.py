"""What manage.py shell of Alliance Auth is given: accounts that in real life come by way of the
game's own login. Each has a character, without which its pages send one away."""

import os

from allianceauth.authentication.models import CharacterOwnership, User
from allianceauth.eveonline.models import EveCharacter
from django.contrib.auth.models import Permission

may_ask = Permission.objects.get(codename="request_groups")
password = os.environ["MEMBERS_PASSWORD"]
for number in range(int(os.environ["MEMBERS"])):
    # The first is the boss.
    create = User.objects.create_user if number else User.objects.create_superuser
    user = create(f"member{number}", password=password, is_staff=True)
    user.user_permissions.add(may_ask)
    character = EveCharacter.objects.create(
        character_id=number + 1, character_name=f"Pilot {number}", corporation_id=1
    )
    CharacterOwnership.objects.create(user=user, character=character, owner_hash=str(number))
    user.profile.main_character = character
    user.profile.save()
