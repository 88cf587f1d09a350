# Makes the types of mmshared known, also to the tools of mmdet and mmpretrain.
custom_imports = dict(imports=['mmshared'], allow_failed_imports=False)
