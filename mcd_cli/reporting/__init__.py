"""What people read: tables, pictures, the model card and the HTML page of a finished run. No torch.

Everything is drawn from the manifest and the metrics; nothing here computes a result.
"""
