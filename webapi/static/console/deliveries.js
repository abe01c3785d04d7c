// Times in filters: chosen in the reader's own time, sent as UTC, which is what they are without this script.
import { when } from "./console.js";

const times = document.querySelectorAll('input[type="datetime-local"]');

for (const time of times) {
  if (time.value) time.value = when(new Date(`${time.value}Z`)).slice(0, 16).replace(" ", "T");
}
for (const zone of document.querySelectorAll(".zone")) zone.textContent = "your time";

document.addEventListener("formdata", (event) => {
  for (const time of event.target.querySelectorAll('input[type="datetime-local"]')) {
    if (time.value) event.formData.set(time.name, new Date(time.value).toISOString().slice(0, 16));
  }
});
