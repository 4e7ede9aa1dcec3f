from django import forms


class QuantityForm(forms.Form):
    quantity = forms.IntegerField(min_value=0, max_value=99)


class CheckoutForm(forms.Form):
    name = forms.CharField(max_length=100, widget=forms.TextInput({"autocomplete": "name"}))
    email = forms.EmailField(widget=forms.EmailInput({"autocomplete": "email"}))
