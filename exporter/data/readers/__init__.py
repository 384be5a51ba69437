"""Who reads each kind of data: arrays, tables, folders of pictures, records, a user's loader."""
